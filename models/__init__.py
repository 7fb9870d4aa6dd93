"""What a forecast is made with: layers, networks, baselines, checkpoints and batched inference.

Needs torch, numpy and safetensors only, so that it trains on a bare GPU machine.
"""
