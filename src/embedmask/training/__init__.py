"""Training with Lightning: module, data, callbacks, and the functions behind `embedmask train`."""
