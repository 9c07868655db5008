"""Step time and peak memory of our training step beside diffusers + peft and ComfyUI's TrainLoraNode."""
