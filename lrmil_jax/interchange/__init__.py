"""Features from other tools and to them: one file a layout, one kind of bag between them."""
