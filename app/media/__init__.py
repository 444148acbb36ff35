"""Pictures that requests name by URL: which are allowed, and how they are fetched without being led astray."""
