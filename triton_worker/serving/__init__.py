"""The worker's face to Triton: sessions of gateways, the requests in flight, and the process around them."""
