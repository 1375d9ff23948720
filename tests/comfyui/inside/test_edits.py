"""Clips of clips: what the nodes make with the built-in demo is what the command line makes of the same seed."""

import av
import pytest
import torch
from comfy_api.latest import InputImpl, Types
from comfy_extras.nodes_mask import ImageCompositeMasked
from magihuman_pack.magihuman_core import InputError, MagiHumanPipeline
from magihuman_pack.nodes import clips, decode, edit, extend, latents, loaders, sampling, voice, windows
from magihuman_pack.nodes.adapter.lazy_video import LazyFrames
from magihuman_pack.nodes.adapter.streams import nested
from magihuman_pack.nodes.conditioning import MagiHumanTextEncode
from magihuman_pack.nodes.files import DEMO
from PIL import Image
from torch.utils._pytree import tree_leaves

PROMPT = 'A happy woman says: "ma so mi".'
STEPS, SEED = 1, 5


def run(node, **inputs):
    """A node's outputs."""
    return node.execute(**inputs).args


@pytest.fixture(scope="module")
def pipeline():
    return MagiHumanPipeline.from_folder("demo", device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def parts():
    """The demo's parts, as nodes take them."""
    (model,) = run(loaders.MagiHumanModelLoader, model=DEMO, role="distilled", weight_dtype="fp32")
    (clip,) = run(loaders.MagiHumanTextEncoderLoader, text_encoder=DEMO, tokenizer="beside the weights",
                  weight_dtype="fp32")
    positive, _ = run(MagiHumanTextEncode, clip=clip, prompt=PROMPT, negative="")
    return {"model": model, "positive": positive, "vae": run(loaders.MagiHumanVideoVAELoader, vae=DEMO)[0],
            "turbo": run(loaders.MagiHumanTurboVAELoader, vae=DEMO)[0],
            "audio_vae": run(loaders.MagiHumanAudioVAELoader, vae=DEMO)[0]}


@pytest.fixture(scope="module")
def film(pipeline, tmp_path_factory):
    """A clip of 1 s, of 64x64, as a file."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    pipeline.generate(PROMPT, seconds=1, width=64, height=64, steps=STEPS, seed=3).save(path)
    return path


@pytest.fixture(scope="module")
def old(film):
    return run(clips.MagiHumanFitClip, video=InputImpl.VideoFromFile(str(film)), width=0, height=0)


def voice_of(seconds, rate=16000):
    time = torch.arange(int(seconds * rate)) / rate
    return (0.3 * torch.sin(2000 * time) * torch.sin(9 * time)).expand(2, -1), rate


def sampled(parts, latent, **more):
    (result,) = run(sampling.MagiHumanSampler, **{
        "model": parts["model"], "positive": parts["positive"], "latent_image": latent, "seed": SEED, "mode": "auto",
        "steps": STEPS, "sr_noise_level": 0, **more})
    return result


def decoded(parts, latent, node=decode.MagiHumanDecode, **more):
    """The outputs for the one clip that is in the latent."""
    lists = run(node, vae=parts["turbo"], audio_vae=parts["audio_vae"], latent=latent, sample_rate="44100", **more)
    assert all(len(entries) == 1 for entries in lists)
    return [entries[0] for entries in lists]


def encoded(parts, images, audio):
    return run(clips.MagiHumanEncodeClip, vae=parts["vae"], audio_vae=parts["audio_vae"], images=images, audio=audio)[0]


def assert_same(images, audio, wanted, pixels=1.0):
    """As the core's clip: to a level of 255 in bytes, and in sound to -60 dB."""
    frames = (images * 255).clamp(0, 255).to(torch.uint8)
    assert frames.shape == wanted.frames.shape
    assert (frames.int() - wanted.frames.int()).abs().float().mean() <= 0.05
    assert (frames.int() - wanted.frames.int()).abs().max() <= pixels + 1
    assert audio["waveform"].shape[2] == wanted.audio.shape[1]
    assert (audio["waveform"][0] - wanted.audio).abs().max() <= 1e-3


def as_audio(waveform, rate):
    return {"waveform": waveform[None], "sample_rate": rate}


def test_dub_through_a_mouth_mask(pipeline, parts, film, old):
    images, _ = old
    recording = voice_of(0.7)
    latent = encoded(parts, images, as_audio(*recording))
    (mouth,) = run(edit.MagiHumanMouthMask, images=images, x=0.5, y=0.65, width=0.4, height=0.3)
    opened, seen = run(edit.MagiHumanRegenerate, latent=latent, start=0.0, end=0.0, part="picture", mask=mouth)
    new, sound, _ = decoded(parts, sampled(parts, opened), audio=as_audio(*recording))
    (pasted,) = run(ImageCompositeMasked, destination=images, source=new, x=0, y=0, resize_source=False, mask=seen)
    wanted = pipeline.dub(film, recording, mask=(0.5, 0.65, 0.4, 0.3), prompt=PROMPT, seed=SEED, steps=STEPS)
    assert_same(pasted, sound, wanted)
    outside = mouth[0] == 0
    assert torch.equal(pasted[:, outside], images[:, outside])
    assert (pasted[:, ~outside] - images[:, ~outside]).abs().max() > 0.02


@pytest.mark.parametrize(("part", "only"), [("both", {}), ("sound", {"audio_only": True})])
def test_retake(pipeline, parts, film, old, part, only):
    images, audio = old
    opened, seen = run(edit.MagiHumanRegenerate, latent=encoded(parts, images, audio), start=0.4, end=0.72, part=part)
    result = sampled(parts, opened)
    new, sound, _ = decoded(parts, result, audio=audio)
    (pasted,) = run(ImageCompositeMasked, destination=images, source=new, x=0, y=0, resize_source=False, mask=seen)
    wanted = pipeline.retake(film, 0.4, 0.72, prompt=PROMPT, seed=SEED, steps=STEPS, **only)
    assert_same(pasted, sound, wanted)
    before, after = opened["samples"].unbind(), result["samples"].unbind()
    video_mask, audio_mask = opened["noise_mask"].unbind()
    assert 0 < video_mask.mean() < 1 if part == "both" else not video_mask.any()
    kept = (video_mask == 0).expand_as(before[0]), (audio_mask == 0).expand_as(before[1])
    assert (before[0] - after[0])[kept[0]].abs().max() <= 1e-5 and torch.equal(before[1][kept[1]], after[1][kept[1]])


def test_another_look(pipeline, parts, film, old):
    images, audio = old
    opened, _ = run(edit.MagiHumanRegenerate, latent=encoded(parts, images, audio), start=0.0, end=0.0, part="picture")
    new, sound, _ = decoded(parts, sampled(parts, opened, denoise=0.6, steps=2), audio=audio)
    wanted = pipeline.generate(PROMPT, clip=film, denoise=0.6, seed=SEED, steps=2)
    assert_same(new, sound, wanted, pixels=2)


@pytest.mark.parametrize("driven", [False, True])
def test_extend_and_join(pipeline, parts, film, old, driven):
    images, audio = old
    recording = voice_of(0.5)
    more = {"driving": as_audio(*recording)} if driven else {}
    latent, overlap, sound = run(extend.MagiHumanExtend, vae=parts["vae"], audio_vae=parts["audio_vae"], images=images,
                                 audio=audio, seconds=0.5, overlap_seconds=0.68, **more)
    new, heard, _ = decoded(parts, sampled(parts, latent), audio=sound)
    whole, joined, video = run(clips.MagiHumanJoin, old_images=images, old_audio=audio, images=new, audio=heard,
                               overlap=overlap)
    given = {"audio": recording} if driven else {"seconds": 0.5}
    wanted = pipeline.extend(film, prompt=PROMPT, seed=SEED, steps=STEPS, overlap=0.8, **given)
    assert overlap == 17
    assert_same(whole, joined, wanted)
    assert joined["waveform"].shape[2] == whole.shape[0] * 1764
    assert video.get_frame_count() == whole.shape[0]


def test_extend_carries_latents(pipeline, parts):
    made = pipeline.generate(PROMPT, seconds=1, width=64, height=64, steps=STEPS, seed=SEED)
    wanted = pipeline.extend(made, seconds=0.4, prompt=PROMPT, seed=SEED, steps=STEPS, overlap=0.48)
    (empty,) = run(latents.EmptyMagiHumanLatent, width=64, height=64, seconds=1.0)
    first = sampled(parts, empty)
    images, audio, _ = decoded(parts, first)
    assert_same(images, audio, made)
    latent, overlap, _ = run(extend.MagiHumanExtend, vae=parts["vae"], audio_vae=parts["audio_vae"], images=images,
                             audio=audio, seconds=0.4, overlap_seconds=0.36, latent=first)
    assert torch.equal(latent["samples"].unbind()[0][:, :, :3], first["samples"].unbind()[0][:, :, -3:])
    new, heard, _ = decoded(parts, sampled(parts, latent))
    assert_same(*run(clips.MagiHumanJoin, old_images=images, old_audio=audio, images=new, audio=heard,
                     overlap=overlap)[:2], wanted)


@pytest.mark.parametrize("length", [0.6, 1.4])
def test_extend_hears_sound_of_another_length_at_its_own_time(parts, old, length):
    """Of a clip of 1 s: what is missing at its end is silence, and what is beyond it is not heard."""
    images, _ = old
    assert images.shape[0] == 25
    waveform, rate = voice_of(length, 44100)
    in_step = torch.nn.functional.pad(waveform[:, :rate], (0, max(0, rate - waveform.shape[1])))
    made = [run(extend.MagiHumanExtend, vae=parts["vae"], audio_vae=parts["audio_vae"], images=images,
                audio=as_audio(sound, rate), seconds=0.4, overlap_seconds=0.68) for sound in (waveform, in_step)]
    assert made[0][1] == made[1][1] == 17
    assert all(map(torch.equal, *(latent["samples"].unbind() for latent, *_ in made)))


@pytest.mark.parametrize("again", [False, True])
def test_extend_carries_latents_of_a_clip_as_long_as_its_recording(pipeline, parts, again):
    """27 frames, the last two of a latent frame of four; and such a clip's driven continuation."""
    recording, next_one = voice_of(27 / 25), voice_of(0.6)
    made = pipeline.generate(PROMPT, audio=recording, width=64, height=64, steps=STEPS, seed=SEED)
    (empty,) = run(latents.EmptyMagiHumanLatent, width=64, height=64, seconds=1.0)
    (driven,) = run(latents.MagiHumanDrivingAudio, audio_vae=parts["audio_vae"], audio=as_audio(*recording),
                    latent=empty, length="from the sound", max_seconds=20.0)
    first = sampled(parts, driven)
    images, audio, _ = decoded(parts, first, audio=as_audio(*recording))
    assert images.shape[0] == len(made.frames) == 27
    wanted = pipeline.extend(made, audio=next_one, prompt=PROMPT, seed=SEED, steps=STEPS, overlap=0.48)
    for _ in range(2 if again else 1):
        latent, overlap, sound = run(extend.MagiHumanExtend, vae=parts["vae"], audio_vae=parts["audio_vae"],
                                     images=images, audio=audio, seconds=0.4, overlap_seconds=0.36, latent=first,
                                     driving=as_audio(*next_one))
        first = sampled(parts, latent)
        new, heard, _ = decoded(parts, first, audio=sound)
        before = images.shape[0]
        images, audio = run(clips.MagiHumanJoin, old_images=images, old_audio=audio, images=new, audio=heard,
                            overlap=overlap)[:2]
        assert images.shape[0] == before + 15
        if not again:
            assert_same(images, audio, wanted)


def test_keyframes_and_loop(pipeline, parts, tmp_path):
    pixels = torch.rand(1, 70, 80, 3)
    picture = Image.fromarray((pixels[0] * 255).round().byte().numpy())
    (empty,) = run(latents.EmptyMagiHumanLatent, width=64, height=64, seconds=0.6)
    (looped,) = run(edit.MagiHumanKeyframe, vae=parts["vae"], image=pixels, latent=empty, at="first and last",
                    seconds=0.0)
    (latent,) = run(edit.MagiHumanKeyframe, vae=parts["vae"], image=pixels.flip(2), latent=looped, at="seconds",
                    seconds=0.24)
    images, sound, _ = decoded(parts, sampled(parts, latent))
    wanted = pipeline.generate(PROMPT, image=picture, loop=True, seconds=0.6, width=64, height=64, seed=SEED,
                               keyframes={0.24: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)}, steps=STEPS)
    assert_same(images, sound, wanted)
    with pytest.raises(InputError, match=r"ends at 0\.52 s"):
        run(edit.MagiHumanKeyframe, vae=parts["vae"], image=pixels, latent=empty, at="seconds", seconds=0.8)


def test_windows_and_a_long_recording(pipeline, parts):
    recording = voice_of(1.4)
    (empty,) = run(latents.EmptyMagiHumanLatent, width=64, height=64, seconds=0.4)
    (driven,) = run(latents.MagiHumanDrivingAudio, audio_vae=parts["audio_vae"], audio=as_audio(*recording),
                    latent=empty, length="from the sound", max_seconds=600.0)
    (model,) = run(windows.MagiHumanWindows, model=parts["model"], window_seconds=0.64, overlap_seconds=0.32)
    images, sound, _ = decoded(parts, sampled(parts, driven, model=model), audio=as_audio(*recording))
    wanted = pipeline.generate(PROMPT, audio=recording, width=64, height=64, seed=SEED, steps=STEPS, window=0.64,
                               overlap=0.32)
    assert_same(images, sound, wanted)
    assert run(windows.MagiHumanWindows, model=parts["model"], window_seconds=0.0,
               overlap_seconds=0.8)[0].model_options["context_handler"].frames == 16  # the demo's 2.4 s


def test_a_batch_is_made_of_single_seeds(parts):
    (batch,) = run(latents.EmptyMagiHumanLatent, width=64, height=64, seconds=0.4, batch_size=2)
    (single,) = run(latents.EmptyMagiHumanLatent, width=64, height=64, seconds=0.4)
    both = sampled(parts, batch)["samples"].unbind()
    alone = sampled(parts, single, seed=SEED + 1)["samples"].unbind()
    assert all(torch.equal(stream[1:], wanted) for stream, wanted in zip(both, alone, strict=True))
    images, sounds, films = run(decode.MagiHumanDecode, vae=parts["turbo"], audio_vae=parts["audio_vae"],
                                latent=sampled(parts, batch), sample_rate="44100")
    assert len(images) == len(sounds) == len(films) == 2 and not torch.equal(images[0], images[1])


def test_voice_draft(pipeline, parts):
    (takes,) = run(voice.MagiHumanVoiceDraft, model=parts["model"], positive=parts["positive"],
                 audio_vae=parts["audio_vae"], seconds=0.6, seed=SEED - 1, takes=2, steps=STEPS)
    waveform, rate = pipeline.generate_audio(PROMPT, seconds=0.6, seed=SEED, steps=STEPS)
    assert takes[1]["sample_rate"] == rate
    assert (takes[1]["waveform"][0] - waveform).abs().max() <= 1e-3
    assert (takes[0]["waveform"] - takes[1]["waveform"]).abs().max() > 0.01


def test_a_film_decoded_while_it_is_saved(parts, tmp_path):
    latent = {"samples": decode_input(parts, 1.0)}
    images, audio, _ = decoded(parts, latent)
    (video,) = decoded(parts, latent, decode.MagiHumanDecodeVideo)
    assert video.get_dimensions() == (64, 64) and video.get_frame_count() == 25 and video.get_duration() == 1.0
    parts_ = video.get_components()
    assert torch.allclose(parts_.images, images, atol=1e-5)
    assert torch.allclose(parts_.audio["waveform"], audio["waveform"], atol=1e-4)
    for name, kinds in (("a.mp4", ("h264", "aac")), ("a.mkv", ("h264", "aac")), ("a.webm", ("av1", "opus"))):
        video.save_to(str(tmp_path / name), format=Types.VideoContainer.AUTO, codec=Types.VideoCodec.AUTO,
                      metadata={"prompt": {"1": "x"}})
        with av.open(str(tmp_path / name)) as file:
            film, sound = file.streams.video[0], file.streams.audio[0]
            assert film.codec_context.name.endswith(kinds[0]) or "av1" in film.codec_context.name
            assert kinds[1] in sound.codec_context.name
            assert {key.lower(): value for key, value in file.metadata.items()}["prompt"] == '{"1": "x"}'
            assert sum(1 for _ in file.decode(video=0)) == 25
    assert not list(tmp_path.glob(".*")) and len(list(tmp_path.iterdir())) == 3


def decode_input(parts, seconds):
    (empty,) = run(latents.EmptyMagiHumanLatent, width=64, height=64, seconds=seconds)
    return sampled(parts, empty)["samples"]


def test_a_long_film_is_decoded_in_pieces(parts, tmp_path, monkeypatch):
    """14 s: no piece is longer than a few seconds, and none is missing or twice there."""
    generator = torch.Generator().manual_seed(1)
    latent = {"samples": nested(torch.randn(1, 48, 89, 2, 2, generator=generator),
                                torch.randn(1, 64, 355, generator=generator))}
    _, audio, _ = decoded(parts, latent)
    (video,) = decoded(parts, latent, decode.MagiHumanDecodeVideo)
    heard, decode_sound = [], parts["audio_vae"].decode
    monkeypatch.setattr(parts["audio_vae"], "decode", lambda z: heard.append(z.shape[2]) or decode_sound(z))
    monkeypatch.setattr(LazyFrames, "tensor", None)
    seen, pieces = [], LazyFrames.pieces
    monkeypatch.setattr(LazyFrames, "pieces",
                        lambda frames: (seen.append(len(piece)) or piece for piece in pieces(frames)))
    video.save_to(str(tmp_path / "film.mp4"))
    assert max(heard) == 50 + 2 * 18 and len(heard) == 8 and sum(seen) == 353 and max(seen) <= 40
    with av.open(str(tmp_path / "film.mp4")) as file:
        assert file.streams.video[0].frames == 353
        assert abs(float(file.streams.audio[0].duration * file.streams.audio[0].time_base) - 353 / 25) < 0.03
    assert (video.audio.audio()["waveform"] - audio["waveform"]).abs().max() <= 2e-3


def test_an_interrupted_save_leaves_nothing(parts, tmp_path, monkeypatch):
    latent = {"samples": decode_input(parts, 0.6)}
    (video,) = decoded(parts, latent, decode.MagiHumanDecodeVideo)
    import comfy.model_management as mm

    mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        video.save_to(str(tmp_path / "film.mp4"))
    assert not list(tmp_path.iterdir())


def test_a_film_is_trimmed_and_its_reading_is_interrupted(tmp_path):
    """Picture and sound of 10 s, of which Trim Video leaves one: a click goes with the first frame of the part."""
    images = (torch.arange(250) / 250)[:, None, None, None].expand(-1, 64, 64, 3)
    waveform = torch.zeros(1, 2, 441000)
    waveform[:, :, 308700:308720] = 0.9  # at 7 s
    parts = Types.VideoComponents(images=images, audio={"waveform": waveform, "sample_rate": 44100}, frame_rate=25)
    InputImpl.VideoFromComponents(parts).save_to(str(tmp_path / "a.mp4"))
    trimmed = InputImpl.VideoFromFile(str(tmp_path / "a.mp4")).as_trimmed(6.0, 2.0)
    frames, audio = run(clips.MagiHumanFitClip, video=trimmed, width=0, height=0)
    assert frames.shape[0] == 50 and abs(float(frames[25].mean()) - 175 / 250) < 0.02
    assert audio["waveform"].shape == (1, 2, 88200)
    assert abs(int(audio["waveform"][0, 0].abs().argmax()) - 44100) < 50
    import comfy.model_management as mm

    mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        run(clips.MagiHumanFitClip, video=trimmed, width=0, height=0)


@pytest.mark.parametrize("rate", [24, 30])
def test_films_of_other_rates_and_without_sound(rate):
    """A picture that gets lighter with time, at another rate: each frame is that of its own time."""
    level = torch.arange(2 * rate) / (2 * rate)
    images = level[:, None, None, None].expand(-1, 50, 70, 3)
    video = InputImpl.VideoFromComponents(Types.VideoComponents(images=images, audio=None, frame_rate=rate))
    frames, audio = run(clips.MagiHumanFitClip, video=video, width=0, height=0)
    assert frames.shape == (50, 32, 64, 3) and audio["waveform"].shape == (1, 2, 50 * 1764)
    assert (frames[:, 0, 0, 0] - torch.arange(50) / 50).abs().max() <= 1 / rate + 0.01
    trimmed = video.as_trimmed(0.4, 1.0)
    assert len(run(clips.MagiHumanFitClip, video=trimmed, width=32, height=32)[0]) == 25


@pytest.mark.parametrize(("film_size", "width", "height", "size", "said"), [
    ((302, 202), 96, 0, (96, 64), False), ((302, 202), 0, 96, (128, 96), False), ((202, 302), 0, 96, (64, 96), False),
    ((302, 202), 64, 192, (64, 192), True), ((302, 202), 0, 0, (288, 192), False),
    ((3200, 32), 64, 64, (64, 64), True), ((32, 3200), 64, 0, (64, 6400), False),
])
def test_a_film_keeps_its_aspect_or_says_what_is_cut_away(film_size, width, height, size, said, caplog):
    images = torch.zeros(2, *film_size[::-1], 3)
    video = InputImpl.VideoFromComponents(Types.VideoComponents(images=images, audio=None, frame_rate=25))
    frames, _ = run(clips.MagiHumanFitClip, video=video, width=width, height=height)
    assert tuple(frames.shape[2:0:-1]) == size
    assert ("are cut away to fill {}x{}".format(*size) in caplog.text) == said


def test_what_a_picture_loses_is_said_where_the_clip_gets_its_size(parts, caplog):
    """And not again where it is enlarged, as its size is no longer to be chosen."""
    picture = torch.rand(1, 160, 80, 3)
    (empty,) = run(latents.EmptyMagiHumanLatent, width=96, height=64, seconds=0.2)
    (start,) = run(latents.MagiHumanReferenceImage, vae=parts["vae"], image=picture, latent=empty)
    assert "A clip of " in caplog.text
    caplog.clear()
    run(latents.MagiHumanLatentUpscale, latent=start, target="factor", factor=2.0, vae=parts["vae"], image=picture)
    assert caplog.text == ""


def test_where_something_is_encoded_the_vae_that_can_is_named(parts, old):
    (empty,) = run(latents.EmptyMagiHumanLatent, width=64, height=64, seconds=0.2)
    wrong, images = parts["audio_vae"], old[0]
    for node, inputs in ((latents.MagiHumanReferenceImage, {"image": images, "latent": empty}),
                         (clips.MagiHumanEncodeClip, {"audio_vae": wrong, "images": images, "audio": old[1]})):
        with pytest.raises(InputError, match=r"video VAE is of another kind .*: connect the Wan2\.2 VAE\.$"):
            run(node, vae=wrong, **inputs)


def test_warnings_of_a_sound_are_sentences(parts, old, caplog):
    images, _ = old
    encoded(parts, images, as_audio(torch.zeros(2, 16000), 16000))
    encoded(parts, images, as_audio(torch.full((2, 16000), 3.0), 16000))
    assert [record.getMessage()[:31] for record in caplog.records] == [
        "The audio is silent from beginn", "The audio is louder than full s"]


class OnCard(torch.Tensor):
    """As one on another device: whatever mixes it with tensors here fails, until it is brought here."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        values = tree_leaves((args, kwargs))
        if func is torch.Tensor.cpu or (func is torch.Tensor.to and any(
                isinstance(value, torch.device) or type(value) is torch.Tensor for value in values[1:])):
            return super().__torch_function__(func, types, args, kwargs or {}).as_subclass(torch.Tensor)
        if func is not torch.Tensor.to:
            kinds = {type(value) for value in values if isinstance(value, torch.Tensor)}
            assert kinds == {cls}, f"{func} of tensors on two devices"
        return super().__torch_function__(func, types, args, kwargs or {})


def test_sound_on_a_card_is_brought_to_main_memory(parts, old):
    """As nodes of other packs may leave it there."""
    images, audio = old
    recording = as_audio(*voice_of(0.5))
    on_card = [{**sound, "waveform": sound["waveform"].as_subclass(OnCard)} for sound in (audio, recording)]
    found = []
    for sound, driving in ((audio, recording), on_card):
        latent, _, heard = run(extend.MagiHumanExtend, vae=parts["vae"], audio_vae=parts["audio_vae"], images=images,
                               audio=sound, seconds=0.4, overlap_seconds=0.36, driving=driving)
        opened, _ = run(edit.MagiHumanRegenerate, latent=encoded(parts, images, sound), start=0.2, end=0.4, part="both")
        (film,) = decoded(parts, opened, decode.MagiHumanDecodeVideo, audio=sound)
        _, joined, _ = run(clips.MagiHumanJoin, old_images=images, old_audio=sound, images=images, audio=driving,
                           overlap=4)
        found.append([latent["samples"].unbind()[1], heard["waveform"], joined["waveform"],
                      film.get_components().audio["waveform"]])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_frames_of_other_channels_mean_what_they_show(parts, old, channels):
    """Gray is gray, and what is transparent lies over white, whichever node gets the frames."""
    sound = old[1]
    images = torch.rand(5, 64, 64, channels, generator=torch.Generator().manual_seed(2))
    shown = images[..., :3] if channels == 4 else images[..., :1].expand(-1, -1, -1, 3)
    if channels != 1:
        shown = 1 - (1 - shown) * images[..., -1:]
    same = [[*encoded(parts, frames, sound)["samples"].unbind(),
             run(extend.MagiHumanExtend, vae=parts["vae"], audio_vae=parts["audio_vae"], images=frames, audio=sound,
                 seconds=0.4, overlap_seconds=0.2)[0]["samples"].unbind()[0],
             run(clips.MagiHumanFitClip, width=0, height=0, video=InputImpl.VideoFromComponents(
                 Types.VideoComponents(images=frames, audio=None, frame_rate=25)))[0]] for frames in (images, shown)]
    assert all(torch.allclose(got, wanted, atol=1e-5) for got, wanted in zip(*same, strict=True))
    rgb = torch.rand(5, 64, 64, 3)
    for pair in ((images, rgb), (rgb, images)):
        (joined, *_) = run(clips.MagiHumanJoin, old_images=pair[0], old_audio=sound, images=pair[1], audio=sound,
                           overlap=1)
        wanted = torch.cat([shown, rgb[1:]] if pair[0] is images else [rgb, shown[1:]])
        assert torch.allclose(joined, wanted, atol=1e-6)


@pytest.mark.parametrize(("node", "inputs", "message"), [
    (edit.MagiHumanRegenerate, {"start": 0.5, "end": 0.4}, "must end after it starts"),
    (edit.MagiHumanRegenerate, {"start": 3.0, "end": 0.0}, "start is 3 s, but the clip ends at 1.00 s"),
    (edit.MagiHumanRegenerate, {"start": 0.0, "end": 0.0, "mask": torch.zeros(1, 9, 9)}, "black all over"),
    (edit.MagiHumanRegenerate, {"start": 0.0, "end": 0.0, "mask": torch.ones(1, 9, 9)}, "white all over"),
])
def test_bad_parts_are_refused(parts, old, node, inputs, message):
    with pytest.raises(InputError, match=message):
        run(node, latent=encoded(parts, *old), part="both", **inputs)


def test_denoise_needs_a_clip(parts):
    (empty,) = run(latents.EmptyMagiHumanLatent, width=64, height=64, seconds=0.4)
    with pytest.raises(InputError, match="denoise below 1"):
        sampled(parts, empty, denoise=0.5)


def test_what_a_first_retake_made_is_heard_after_a_second(parts, old):
    """And after super-resolution: a recording is heard where the sound is still the recording's, and nowhere else."""
    images, audio = old[:2]
    clip = encoded(parts, images, audio)
    (first, _) = run(edit.MagiHumanRegenerate, latent=clip, start=0.2, end=0.4, part="both")
    (second, _) = run(edit.MagiHumanRegenerate, latent=sampled(parts, first), start=0.5, end=0.6, part="both")
    made = sampled(parts, second)
    (large,) = run(latents.MagiHumanLatentUpscale, latent=made, target="factor", factor=1.0)
    for result in (made, large):
        heard = decoded(parts, result, audio=audio)[1]["waveform"]
        own = decoded(parts, result)[1]["waveform"]
        changed = (heard - own).abs().amax(1)[0]
        for start, same in ((0.24, True), (0.5, True), (0.7, False), (0.05, False)):
            part = changed[int(start * 44100) : int((start + 0.1) * 44100)]
            assert (float(part.max()) < 1e-4) == same, start


@pytest.mark.parametrize("node", [decode.MagiHumanDecode, decode.MagiHumanDecodeVideo])
def test_a_recording_that_drove_nothing_is_not_heard(parts, old, caplog, node):
    """Of a clip whose sound the model made as a whole: from noise, enlarged, or a retake from start to end."""
    recording = as_audio(*voice_of(1.0))
    (empty,) = run(latents.EmptyMagiHumanLatent, width=64, height=64, seconds=0.6)
    made = sampled(parts, empty)
    (large,) = run(latents.MagiHumanLatentUpscale, latent=made, target="factor", factor=1.0)
    opened, _ = run(edit.MagiHumanRegenerate, latent=encoded(parts, *old), start=0.0, end=0.0, part="both")

    def sound(latent, **more):
        caplog.clear()
        return decoded(parts, latent, node, **more)[-1].get_components().audio["waveform"]

    for latent in (made, large, sampled(parts, opened)):
        own = sound(latent)
        assert "was not held" not in caplog.text
        assert torch.equal(sound(latent, audio=recording), own)
        assert "MagiHuman Driving Audio" in caplog.text
    for latent in (empty, large):  # once it is held, it is heard, whatever was before
        (driven,) = run(latents.MagiHumanDrivingAudio, audio_vae=parts["audio_vae"], audio=recording, latent=latent,
                        length="from the latent", max_seconds=20.0)
        heard = sound(driven, audio=recording)
        assert "was not held" not in caplog.text
        assert not torch.allclose(heard, sound(driven), atol=1e-2)


@pytest.mark.parametrize("more", [{}, {"denoise": 0.5}])
def test_a_clip_of_which_nothing_is_open_is_warned_of(parts, old, caplog, more):
    latent = encoded(parts, *old)
    sampled(parts, latent, **more)
    assert "sampling changes nothing: put MagiHuman Regenerate" in caplog.text
    caplog.clear()
    opened, _ = run(edit.MagiHumanRegenerate, latent=latent, start=0.2, end=0.4, part="sound")
    sampled(parts, opened, **more)
    assert "changes nothing" not in caplog.text


def test_a_clip_after_super_resolution_is_one_like_others(parts, old):
    (large,) = run(latents.MagiHumanLatentUpscale, latent=encoded(parts, *old[:2]), target="factor", factor=1.0)
    with pytest.raises(InputError, match="super-resolution"):
        sampled(parts, large)
    opened, _ = run(edit.MagiHumanRegenerate, latent=large, start=0.2, end=0.4, part="both")
    sampled(parts, opened)


def test_extend_takes_the_latent_of_one_clip(parts, old):
    images, audio = old[:2]
    (two,) = run(latents.EmptyMagiHumanLatent, width=64, height=64, seconds=1.0, batch_size=2)
    with pytest.raises(InputError, match="holds 2 clips"):
        run(extend.MagiHumanExtend, vae=parts["vae"], audio_vae=parts["audio_vae"], images=images, audio=audio,
            seconds=0.4, overlap_seconds=0.36, latent=two)


def test_a_film_goes_on_in_tiles_where_memory_runs_out(parts, monkeypatch, caplog):
    latent = {"samples": decode_input(parts, 0.6)}
    (videos,) = run(decode.MagiHumanDecodeVideo, vae=parts["vae"], audio_vae=parts["audio_vae"], latent=latent,
                    sample_rate="44100")
    (video,) = videos
    wanted = video.frames.tensor()
    stage = parts["vae"].first_stage_model.vae
    windows = stage.decode_windows

    def short_of_memory(z, *, tile=None, **more):
        for number, window in enumerate(windows(z, tile=tile, **more)):
            if number and tile is None:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            yield window

    monkeypatch.setattr(stage, "decode_windows", short_of_memory)
    found = video.frames.tensor()
    assert "goes on in tiles" in caplog.text
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < 1e-4  # one tile holds all of so small a picture
