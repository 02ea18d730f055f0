"""Messages as bytes: a canonical encoding, the signed envelope around it, one class each."""
