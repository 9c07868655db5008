"""Everything that is claimed about cards, measured by one command: python -m bench.gpu.

Rows are measured in one child process, the most telling first, and written one by one to ``bench/results``: a row that
fails, hangs or takes the process with it costs itself alone. First whether gradients are right in every stored format,
then whole runs with a preview in the middle that are taken up again, then seconds, memory and traffic of every flavour
in its true shapes with random weights, then others' trainers where they are installed.

The parent process imports neither torch nor ComfyUI, and runs where they cannot be imported. ``--pack DIR`` makes a
folder for a machine without internet that has torch, transformers, accelerate and safetensors, and nothing else.
"""
