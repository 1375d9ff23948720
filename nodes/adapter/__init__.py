"""The one place that touches ComfyUI's internals; everything else here speaks its public node API."""
