"""Where records come from: one small module a format, all behind the protocol of `base`."""
