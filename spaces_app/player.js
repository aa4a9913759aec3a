// The player: the recording before, and its takes, one for each enhancement of this visit. All run on one clock, sample
// by sample; the switch only moves gains, so the position stays and nothing is interrupted. Pieces are fetched as they
// are needed, while the rest of a take is still in the making. Gradio runs this as the body of a function: `element` is
// the player, `props.value` the newest take (see comparison.py), `watch` tells that it has changed.

const AHEAD_SECONDS = 3; // decoded in advance of what is heard
const START_SECONDS = 0.05; // from a decision to the first sample
const FADE_SECONDS = 0.004; // time constant of the switch: no click, no gap
const MOST_TAKES = 5; // as many as a phone has room for
const MOST_BUFFERS = 24; // decoded pieces that are kept

const find = (selector) => element.querySelector(selector);
const player = find(".dacse-player");
const playButton = find(".dacse-play");
const seek = find(".dacse-seek");
const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
const encoded = (path) => path.split("/").map(encodeURIComponent).join("/");
const fileUrl = (path) => `${window.gradio_config.root}${window.gradio_config.api_prefix}/file=${encoded(path)}`;

let takes = []; // of one recording, oldest first; the newest may be in the making
let chosen = null; // id of the take that is shown
let side = "after"; // or "before"
let context = null;
let gains = new Map(); // by track
let buffers = new Map(); // decoded pieces by path
let laidOut = []; // tracks of this run
let run = 0; // counts starts and stops; an older playing loop sees that it is over
let playing = false;
let position = 0; // seconds, while not playing
let anchor = 0; // context time at which second 0 would be heard, while playing
let scheduledEnd = 0; // seconds: how far sources are laid out
let sources = [];
let frame = 0; // of the animation

const take = () => takes.find((one) => one.id === chosen);
const newest = () => takes[takes.length - 1];
const madeOf = (one) => one.pieces.reduce((end, piece) => Math.max(end, piece.start + piece.seconds), 0);
const available = () => madeOf(take());
const heard = () => (side === "before" ? "before" : chosen); // the track that is to be heard
const onGrid = (seconds) => Math.round(seconds * context.sampleRate) / context.sampleRate; // joints without a gap
const now = () => (playing ? Math.max(0, Math.min(context.currentTime - anchor, scheduledEnd)) : position);

// What is played at once: the recording, the take that is shown, and all that are done.
function tracks() {
  const ready = takes.filter((one) => one.done || one.id === chosen);
  const before = { name: "before", loudness: take().loudness.before };
  before.pieces = take().pieces.map((piece) => ({ ...piece, file: piece.before }));
  const after = ready.map((one) => ({
    name: one.id,
    loudness: one.loudness.after,
    pieces: one.pieces.map((piece) => ({ ...piece, file: piece.after })),
  }));
  return [before, ...after];
}

// How far a track is lowered, in dB, so that all are as loud as the quietest.
function lowered(name) {
  const known = tracks().filter((track) => track.loudness !== null);
  const quietest = Math.min(...known.map((track) => track.loudness));
  const track = known.find((one) => one.name === name);
  return track ? track.loudness - quietest : 0;
}

function openContext() {
  context = new AudioContext({ sampleRate: take().sampling_rate });
  gains = new Map();
}

function closeContext() {
  context?.close();
  context = null;
  buffers.clear();
}

function gainOf(name) {
  if (!gains.has(name)) {
    const gain = context.createGain();
    gain.gain.value = 0;
    gain.connect(context.destination);
    gains.set(name, gain);
  }
  return gains.get(name);
}

function applyGains() {
  if (!context) return;
  for (const { name } of tracks()) {
    const level = name === heard() ? 10 ** (-lowered(name) / 20) : 0;
    gainOf(name).gain.setTargetAtTime(level, context.currentTime, FADE_SECONDS);
  }
}

function decode(path) {
  if (!buffers.has(path)) {
    if (buffers.size >= MOST_BUFFERS) buffers.delete(buffers.keys().next().value);
    const mine = context;
    buffers.set(path, fetch(fileUrl(path)).then(async (response) => {
      if (!response.ok) throw new Error("gone");
      return mine.decodeAudioData(await response.arrayBuffer());
    }));
  }
  return buffers.get(path);
}

// The stretches of all tracks from one second to another: a decoded piece, where it begins, and what is played of it.
async function load(from, to) {
  const wanted = tracks().filter((track) => laidOut.includes(track.name)).flatMap((track) =>
    track.pieces
      .filter((piece) => piece.start < to && piece.start + piece.seconds > from)
      .map((piece) => ({
        name: track.name, file: piece.file, origin: piece.start,
        from: Math.max(from, piece.start), to: Math.min(to, piece.start + piece.seconds),
        isCut: piece.start + piece.seconds > to + 1e-6,
      })));
  const decoded = await Promise.all(wanted.map((stretch) => decode(stretch.file)));
  return wanted.map((stretch, index) => ({ ...stretch, buffer: decoded[index] }));
}

function layOut(stretches, from) {
  if (anchor + from < context.currentTime) { // it came late: the clock of the recording waits for it
    anchor = onGrid(context.currentTime + START_SECONDS) - from;
  }
  for (const stretch of stretches) {
    const source = context.createBufferSource();
    source.buffer = stretch.buffer;
    source.connect(gainOf(stretch.name));
    const length = stretch.isCut ? [stretch.to - stretch.from] : []; // else to the last sample, whatever rounding does
    source.start(anchor + stretch.from, stretch.from - stretch.origin, ...length);
    source.onended = () => (sources = sources.filter((other) => other !== source));
    sources.push(source);
  }
}

async function playFrom(start) {
  const mine = ++run;
  playing = true;
  scheduledEnd = start;
  laidOut = tracks().map((track) => track.name);
  anchor = onGrid(context.currentTime + START_SECONDS) - onGrid(start);
  applyGains();
  showPlaying();
  await context.resume();
  while (mine === run) {
    const piece = take().pieces.find((one) => scheduledEnd < one.start + one.seconds - 1e-6);
    if (!piece) {
      if (take().done && now() >= available() - 0.01) return stop(0);
      await sleep(0.1);
    } else if (now() < scheduledEnd - AHEAD_SECONDS) {
      await sleep(0.1);
    } else {
      const from = scheduledEnd, to = piece.start + piece.seconds;
      const stretches = await load(from, to).catch(() => null);
      if (mine !== run) return;
      if (!stretches) {
        stop(now());
        find(".dacse-note").textContent = "This take is no longer on the server. Enhance the recording again.";
        return;
      }
      layOut(stretches, from);
      scheduledEnd = to;
    }
  }
}

function stop(at) {
  run += 1;
  playing = false;
  position = at;
  for (const source of sources) source.stop();
  sources = [];
  if (takes.length) showPlaying();
}

function seekTo(seconds) {
  const target = Math.max(0, Math.min(seconds, available() - 0.01));
  const resume = playing;
  stop(target);
  if (resume) playFrom(target);
}

function toggle() {
  if (playing) return stop(now());
  if (!take().pieces.length) return;
  if (!context) openContext();
  playFrom(Math.min(position, available() - 0.01));
}

function clock(seconds) {
  return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
}

function showPlaying() {
  playButton.setAttribute("aria-label", playing ? "Pause" : "Play");
  playButton.querySelector("path").setAttribute("d", playing ? "M6 5h4v14H6zM14 5h4v14h-4z" : "M7 4.5v15l12.5-7.5z");
  showPosition();
}

function showPosition() {
  cancelAnimationFrame(frame);
  const seconds = now();
  const all = take().seconds;
  seek.value = seconds;
  seek.setAttribute("aria-valuetext", `${seconds.toFixed(1)} of ${all.toFixed(1)} seconds`);
  find(".dacse-time").textContent = `${clock(seconds)} / ${clock(all)}`;
  find(".dacse-playhead").style.left = `${(100 * seconds) / all}%`;
  player.dataset.position = seconds.toFixed(3);
  if (playing) frame = requestAnimationFrame(showPosition);
}

function choose(track) {
  side = track === "before" ? "before" : "after";
  if (side === "after") chosen = track;
  player.dataset.side = side;
  if (playing && !laidOut.includes(heard())) seekTo(now()); // it was in the making when this run began
  show();
}

// The switch: before, and after or the numbers of the takes.
function showSides() {
  const sides = find(".dacse-sides");
  const names = ["before", ...takes.map((one) => one.id)];
  if (sides.dataset.names !== names.join()) {
    sides.dataset.names = names.join();
    sides.replaceChildren(...names.map((name, index) => {
      const label = document.createElement("label");
      const radio = Object.assign(document.createElement("input"), { type: "radio", name: "dacse-side", value: name });
      const text = document.createElement("span");
      text.textContent = name === "before" ? "Before" : takes.length === 1 ? "After" : `${index}`;
      if (name !== "before" && takes.length > 1) radio.setAttribute("aria-label", `Take ${index}: ${takes[index - 1].label}`);
      radio.addEventListener("change", () => choose(name));
      label.append(radio, text);
      return label;
    }));
  }
  for (const radio of sides.querySelectorAll("input")) radio.checked = radio.value === heard();
}

function showTake() {
  const number = takes.findIndex((one) => one.id === chosen) + 1;
  const name = takes.length > 1 ? `Take ${number}` : "After";
  find(".dacse-take").textContent =
    side === "before" ? "Before: the recording as it was" : `${name}: ${take().label}`;
  find(".dacse-after").textContent = name;
  const fall = lowered(heard());
  find(".dacse-note").textContent = "All play equally loud."
    + (fall >= 0.05 ? ` What is chosen is lowered by ${fall.toFixed(1)} dB for that.` : "");
  const link = find(".dacse-download");
  link.hidden = !take().download;
  if (take().download) {
    link.href = fileUrl(take().download);
    link.download = take().download.split("/").pop();
    link.textContent = takes.length > 1 ? `Download take ${number}` : "Download the enhanced recording";
  }
}

function showPictures() {
  const pictures = take().pictures;
  for (const image of element.querySelectorAll("img[data-side]")) {
    const picture = pictures?.[image.dataset.side];
    image.hidden = !picture;
    if (picture) image.src = fileUrl(picture);
    image.parentElement.dataset.top = picture ? pictures.top : "";
  }
}

function showAxis() {
  const steps = [0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800];
  const all = take().seconds;
  const step = steps.find((candidate) => all / candidate <= 6) ?? 3600;
  const ticks = [];
  for (let second = 0; second < all * 0.97; second += step) {
    const tick = document.createElement("span");
    tick.style.left = `${(100 * second) / all}%`;
    tick.textContent = step < 60 && all < 60 ? `${Number(second.toFixed(1))} s` : clock(second);
    ticks.push(tick);
  }
  find(".dacse-axis").replaceChildren(...ticks);
}

function showConfidence() {
  const { seconds, values } = take().confidence;
  const width = seconds / take().seconds;
  const points = values.map((value, index) => `${(width * (index + 0.5)) / values.length},${1 - value}`);
  find(".dacse-confidence path").setAttribute("d", points.length ? `M${points.join("L")}` : "");
  const mean = values.reduce((sum, value) => sum + value, 0) / (values.length || 1);
  find(".dacse-confidence svg").setAttribute(
    "aria-label", `Confidence of the model over time, from 0 to 1; ${mean.toFixed(2)} on average`);
}

function show() {
  player.hidden = !takes.length;
  if (!takes.length) return;
  seek.max = take().seconds;
  find(".dacse-made").style.width = `${(100 * available()) / take().seconds}%`;
  player.classList.toggle("dacse-done", take().done);
  playButton.disabled = !take().pieces.length;
  showSides();
  showTake();
  showPictures();
  showAxis();
  showConfidence();
  showPosition();
  applyGains();
}

// A new take joins those of the same recording that are done; another recording begins anew.
function receive() {
  const next = props.value;
  if (!next) return;
  const known = takes.findIndex((one) => one.id === next.id);
  if (known >= 0) {
    takes[known] = next;
  } else if (newest()?.recording === next.recording) {
    const wasChosen = take(), at = now();
    takes = [...takes.filter((one) => one.done).slice(1 - MOST_TAKES), next];
    if (!playing || !takes.includes(wasChosen)) {
      chosen = next.id;
      side = "after";
      stop(at);
    }
  } else {
    stop(0);
    closeContext();
    takes = [next];
    chosen = next.id;
    side = "after";
  }
  player.dataset.side = side;
  show();
}

playButton.addEventListener("click", toggle);
seek.addEventListener("input", () => seekTo(Number(seek.value)));
find(".dacse-plots").addEventListener("click", (event) => {
  const box = find(".dacse-plots").getBoundingClientRect();
  seekTo((take().seconds * (event.clientX - box.left)) / box.width);
});
watch("value", receive);
receive();
