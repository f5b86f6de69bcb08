"""Predictions over HTTP (`lrmil serve`): one model, slide after slide, and no job is lost."""
