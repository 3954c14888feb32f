"""Code that travels with an exported classifier: with torch, safetensors and pyautoattack, without the rest of the project."""
