"""The voice alone."""

from .drawing import Drawing
from .files import AUDIO, CHOSEN, TEXT
from .parts import add_prompt


def draw() -> Drawing:
    d = Drawing("voice_draft", (
        "# Voice draft\n\nThe voice alone, in a few seconds: three takes of one line. When you like one, save it "
        "from its "
        "player, open *lip_sync*, and load it there: the clip then speaks with exactly this voice.\n\n"), 400)
    d.group("Models").add("model", "MagiHumanModelLoader", model=CHOSEN["distilled"].choice)
    d.add("clip", "MagiHumanTextEncoderLoader", text_encoder=TEXT)
    d.add("audio_vae", "MagiHumanAudioVAELoader", vae=AUDIO)
    add_prompt(d)
    d.group("Voice").add("voice", "MagiHumanVoiceDraft", model="model", positive=("text", "positive"),
                         audio_vae="audio_vae", seconds=5.0, seed=1, takes=3)
    return d.add("preview", "PreviewAudio", audio="voice")
