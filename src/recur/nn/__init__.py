"""Ground floor: tensors in, tensors out. Imports torch alone."""
