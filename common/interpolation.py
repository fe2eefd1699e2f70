"""Names of torch's linear interpolation."""

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}  # by the number of spatial axes
