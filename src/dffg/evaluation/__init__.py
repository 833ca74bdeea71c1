"""Real data and what is measured with it. Neither synthesis nor quant can import this package: that is checked."""
