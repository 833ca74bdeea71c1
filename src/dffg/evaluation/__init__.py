"""Real data and what is measured with it. Neither graph, synthesis nor quant can import it: that is checked."""
