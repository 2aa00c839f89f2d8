"""Running a model: device choice, packing, and the one worker thread that feeds it."""
