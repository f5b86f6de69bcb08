"""From a slide file to a prediction, and the encoders and heads that it takes."""
