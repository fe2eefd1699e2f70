"""From folders of scans and masks to a model with few decisions left to the user."""
