"""What the toy's layer brings."""
