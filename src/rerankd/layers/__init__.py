"""What models are built of: attention over packed segments, linear maps, norms, rotary positions."""
