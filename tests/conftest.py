import torch

# The networks of the tests are too small for threads, which only get in each other's way.
torch.set_num_threads(1)
