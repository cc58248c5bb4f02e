"""The web page: `stabn-app`. Gradio is imported here and nowhere else."""
