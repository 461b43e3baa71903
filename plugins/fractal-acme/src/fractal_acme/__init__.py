"""The `acme` authority: certificates by RFC 8555, proven by TLS-ALPN-01 (RFC 8737)."""
