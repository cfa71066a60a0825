"""What a GPU needs besides torch: the driver, kernels compiled at first use, and the CUDA compiler. Knows no noise."""
