// The before/after player. Both sides run on one clock, sample by sample; the switch only moves two gains, so the
// position stays and nothing is interrupted. Pieces are fetched as they are needed, while the rest is still in the making.
// Gradio runs this as the body of a function: `element` is the player, `props.value` the comparison, `watch` tells of a new one.

const AHEAD_SECONDS = 3; // decoded in advance of what is heard
const START_SECONDS = 0.05; // from a decision to the first sample
const FADE_SECONDS = 0.004; // time constant of the switch: no click, no gap

const find = (selector) => element.querySelector(selector);
const player = find(".dacse-player");
const playButton = find(".dacse-play");
const seek = find(".dacse-seek");
const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
const fileUrl = (path) => `${window.gradio_config.root}${window.gradio_config.api_prefix}/file=${encodeURI(path)}`;

let comparison = null; // props.value: see comparison.py
let context = null;
let gains = null; // one GainNode for each side
let side = "after";
let run = 0; // counts starts and stops; an older playing loop sees that it is over
let playing = false;
let position = 0; // seconds, while not playing
let anchor = 0; // context time at which second 0 would be heard, while playing
let scheduledEnd = 0; // seconds: how far sources are laid out
let sources = [];
let frame = 0; // of the animation

const available = () => comparison.pieces.reduce((end, piece) => Math.max(end, piece.start + piece.seconds), 0);
const onGrid = (seconds) => Math.round(seconds * context.sampleRate) / context.sampleRate; // joints without a gap
const now = () => (playing ? Math.max(0, Math.min(context.currentTime - anchor, scheduledEnd)) : position);

function openContext() {
  context = new AudioContext({ sampleRate: comparison.sampling_rate });
  gains = { before: context.createGain(), after: context.createGain() };
  for (const gain of Object.values(gains)) gain.connect(context.destination);
  applyGains();
}

function applyGains() {
  if (!gains) return;
  for (const name of ["before", "after"]) {
    const level = name === side ? comparison.gains[name] : 0;
    gains[name].gain.setTargetAtTime(level, context.currentTime, FADE_SECONDS);
  }
}

async function decode(path) {
  const response = await fetch(fileUrl(path));
  return context.decodeAudioData(await response.arrayBuffer());
}

function startPiece(piece, buffers, from) {
  let when = anchor + from;
  if (when < context.currentTime) { // the piece came late: the clock of the recording waits for it
    when = onGrid(context.currentTime + START_SECONDS);
    anchor = when - from;
  }
  for (const name of ["before", "after"]) {
    const source = context.createBufferSource();
    source.buffer = buffers[name];
    source.connect(gains[name]);
    source.start(when, from - piece.start);
    source.onended = () => (sources = sources.filter((other) => other !== source));
    sources.push(source);
  }
  scheduledEnd = piece.start + piece.seconds;
}

async function playFrom(start) {
  const mine = ++run;
  playing = true;
  scheduledEnd = start;
  anchor = onGrid(context.currentTime + START_SECONDS) - onGrid(start);
  showPlaying();
  await context.resume();
  let index = comparison.pieces.findIndex((piece) => start < piece.start + piece.seconds);
  while (mine === run) {
    const piece = comparison.pieces[index];
    if (!piece) {
      if (comparison.done && now() >= available() - 0.01) return stop(0);
      await sleep(0.1);
    } else if (now() < piece.start - AHEAD_SECONDS) {
      await sleep(0.1);
    } else {
      const [before, after] = await Promise.all([decode(piece.before), decode(piece.after)]);
      if (mine !== run) return;
      startPiece(piece, { before, after }, Math.max(start, piece.start));
      index += 1;
    }
  }
}

function stop(at) {
  run += 1;
  playing = false;
  position = at;
  for (const source of sources) source.stop();
  sources = [];
  showPlaying();
}

function seekTo(seconds) {
  const target = Math.max(0, Math.min(seconds, available() - 0.01));
  const resume = playing;
  stop(target);
  if (resume) playFrom(target);
}

function toggle() {
  if (playing) return stop(now());
  if (!comparison.pieces.length) return;
  if (!context) openContext();
  playFrom(position);
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
  seek.value = seconds;
  seek.setAttribute("aria-valuetext", `${seconds.toFixed(1)} of ${comparison.seconds.toFixed(1)} seconds`);
  find(".dacse-time").textContent = `${clock(seconds)} / ${clock(comparison.seconds)}`;
  find(".dacse-playhead").style.left = `${(100 * seconds) / comparison.seconds}%`;
  player.dataset.position = seconds.toFixed(3);
  if (playing) frame = requestAnimationFrame(showPosition);
}

function choose(name) {
  side = name;
  player.dataset.side = name;
  applyGains();
}

function showAxis() {
  const steps = [0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800];
  const step = steps.find((candidate) => comparison.seconds / candidate <= 6) ?? 3600;
  const ticks = [];
  for (let second = 0; second < comparison.seconds * 0.97; second += step) {
    const tick = document.createElement("span");
    tick.style.left = `${(100 * second) / comparison.seconds}%`;
    tick.textContent = step < 60 && comparison.seconds < 60 ? `${Number(second.toFixed(1))} s` : clock(second);
    ticks.push(tick);
  }
  find(".dacse-axis").replaceChildren(...ticks);
}

function showConfidence() {
  const { seconds, values } = comparison.confidence;
  const width = seconds / comparison.seconds;
  const points = values.map((value, index) => `${(width * (index + 0.5)) / values.length},${1 - value}`);
  find(".dacse-confidence path").setAttribute("d", points.length ? `M${points.join("L")}` : "");
  const mean = values.reduce((sum, value) => sum + value, 0) / (values.length || 1);
  find(".dacse-confidence svg").setAttribute(
    "aria-label", `Confidence of the model over time, from 0 to 1; ${mean.toFixed(2)} on average`);
}

function show() {
  const next = props.value || null;
  if (comparison && next?.id !== comparison.id) {
    stop(0);
    context?.close();
    context = gains = null;
  }
  comparison = next;
  player.hidden = !comparison;
  if (!comparison) return;
  seek.max = comparison.seconds;
  find(".dacse-made").style.width = `${(100 * available()) / comparison.seconds}%`;
  player.classList.toggle("dacse-done", comparison.done);
  playButton.disabled = !comparison.pieces.length;
  find(".dacse-note").textContent = comparison.note;
  for (const image of element.querySelectorAll("img[data-side]")) {
    const picture = comparison.pictures?.[image.dataset.side];
    image.hidden = !picture;
    if (picture) image.src = fileUrl(picture);
    image.parentElement.dataset.top = picture ? comparison.pictures.top : "";
  }
  applyGains();
  showAxis();
  showConfidence();
  showPosition();
}

playButton.addEventListener("click", toggle);
seek.addEventListener("input", () => seekTo(Number(seek.value)));
for (const radio of element.querySelectorAll("input[type=radio]")) {
  radio.addEventListener("change", () => choose(radio.value));
}
find(".dacse-plots").addEventListener("click", (event) => {
  const box = find(".dacse-plots").getBoundingClientRect();
  seekTo((comparison.seconds * (event.clientX - box.left)) / box.width);
});
choose("after");
watch("value", show);
show();
