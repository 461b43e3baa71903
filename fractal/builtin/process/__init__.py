"""The `process` runtime: services as plain processes of this device, parented by the guard. It does not isolate."""
