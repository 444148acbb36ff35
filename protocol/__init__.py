"""The contract between the gateway and the worker: what crosses Triton, and nothing else.

A gateway opens one long-lived *deltas* stream and speaks to the worker through unary *control* calls
(:mod:`protocol.messages`). Each message is one MessagePack document in one UINT8 tensor (:mod:`protocol.wire`).
"""
