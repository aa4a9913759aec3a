"""The Gradio demo, which is published as a Space as it stands. Its files import one another as a Space does: flat."""
