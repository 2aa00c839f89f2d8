"""Images and videos: fetched under limits, decoded, resized as the models' authors do, cut into patches."""
