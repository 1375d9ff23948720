"""What only ComfyUI's own process can see, run as programs in its Python."""


def test_the_reference_trajectories_hold_through_comfyui(run_inside):
    run_inside("parity.py")


def test_lora_patches_and_memory_of_the_model(run_inside, base_directory):
    run_inside("model.py", str(base_directory / "models/diffusion_models/magihuman"))


def test_weights_kept_in_fewer_bits(run_inside, base_directory):
    run_inside("quantized.py", str(base_directory / "models/diffusion_models/magihuman"))


def test_clip_and_vaes(run_inside, base_directory):
    run_inside("encoders.py", str(base_directory / "models"))
