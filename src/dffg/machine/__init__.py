"""What the machine offers: devices, memory, processors, other processes."""
