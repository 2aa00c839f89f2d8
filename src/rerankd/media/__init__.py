"""Images and videos: fetching under limits, decoding, resizing by the rules of the models' authors, and patches."""
