// The page of a server: an image, marks on it, a question, and the answer with its masks drawn over the image.
"use strict";

const COLOURS = [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0], [204, 121, 167]]; // Okabe & Ito 2008
const LONGEST_DRAG_OF_A_CLICK = 3; // pixels of the screen
const $ = (id) => document.getElementById(id);
const state = { file: null, bitmap: null, regions: [], masks: [], start: null, draft: null };

// Pixels of COCO compressed run lengths, row by row: 5 bits a character, the sixth says that more follow, from the fourth run on a
// difference to the run two before; runs go down the columns (pycocotools, maskApi.c, rleFrString).
function unmask(counts, height, width) {
  const runs = [];
  for (let place = 0; place < counts.length; ) {
    let value = 0, shift = 0, code;
    do {
      code = counts.charCodeAt(place++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16 && shift < 32) value |= -1 << shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  const pixels = new Uint8Array(height * width);
  let column = 0;
  runs.forEach((length, number) => {
    for (let step = 0; step < length; step++, column++) {
      pixels[(column % height) * width + Math.floor(column / height)] = number % 2;
    }
  });
  return pixels;
}

function tinted({ counts, size: [height, width] }, [red, green, blue]) {
  const pixels = unmask(counts, height, width);
  const image = new ImageData(width, height);
  pixels.forEach((on, place) => on && image.data.set([red, green, blue, 120], 4 * place));
  const layer = new OffscreenCanvas(width, height);
  layer.getContext("2d").putImageData(image, 0, 0);
  return layer;
}

function draw() {
  const canvas = $("view"), pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (!state.bitmap) return;
  pen.drawImage(state.bitmap, 0, 0);
  state.masks.forEach((layer) => pen.drawImage(layer, 0, 0));
  pen.strokeStyle = "#00e676";
  pen.lineWidth = Math.max(1, canvas.width / canvas.clientWidth * 2);
  [...state.regions, ...(state.draft ? [state.draft] : [])].forEach(({ x, y, width, height }) =>
    width ? pen.strokeRect(x, y, width, height) : pen.strokeRect(x - pen.lineWidth, y - pen.lineWidth, 2 * pen.lineWidth, 2 * pen.lineWidth));
}

const written = ({ x, y, width, height }) => (width ? `box:${x},${y},${width},${height}` : `point:${x},${y}`);

function mark(regions) {
  state.regions = regions;
  $("regions").replaceChildren(...regions.map((region) => Object.assign(document.createElement("li"), { textContent: written(region) })));
  $("clear").disabled = !regions.length;
  draw();
}

async function open(file) {
  complain("");
  state.bitmap = await createImageBitmap(file, { imageOrientation: "none" }).catch(() => null);
  state.file = state.bitmap && file;
  state.masks = [];
  if (!state.bitmap) complain(`${file.name}: expected a PNG or JPEG, found a file that this browser cannot show`);
  else Object.assign($("view"), { width: state.bitmap.width, height: state.bitmap.height });
  $("reply").hidden = true;
  $("ask").disabled = !state.file;
  mark([]);
}

function at(event) {
  const canvas = $("view"), frame = canvas.getBoundingClientRect();
  const inside = (value, end) => Math.min(Math.max(Math.floor(value), 0), end - 1);
  return {
    x: inside((event.clientX - frame.left) * canvas.width / frame.width, canvas.width),
    y: inside((event.clientY - frame.top) * canvas.height / frame.height, canvas.height),
  };
}

function dragged(event) {
  const end = at(event), start = state.start.image;
  const far = Math.hypot(event.clientX - state.start.screen.x, event.clientY - state.start.screen.y) > LONGEST_DRAG_OF_A_CLICK;
  const box = { width: Math.abs(end.x - start.x) + 1, height: Math.abs(end.y - start.y) + 1 };
  return { x: Math.min(start.x, end.x), y: Math.min(start.y, end.y), ...(far ? box : { width: 0, height: 0 }) };
}

function complain(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

const headers = () => ($("token").value ? { Authorization: `Bearer ${$("token").value}` } : {});

async function refused(response) {
  if (response.status === 401) $("secret").hidden = false;
  const told = await response.json().catch(() => ({}));
  return told.detail || `server: expected an answer, found status ${response.status}`;
}

async function ready() {
  const response = await fetch("readyz", { headers: headers() }).catch(() => null);
  if (!response) return void ($("model").textContent = "no server answers");
  if (response.status === 401) return void ($("model").textContent = await refused(response));
  const { model } = await response.json();
  $("model").textContent = `model ${model}`;
}

async function base64(file) {
  const address = await new Promise((resolve, reject) => {
    const reader = Object.assign(new FileReader(), { onload: () => resolve(reader.result), onerror: () => reject(reader.error) });
    reader.readAsDataURL(file);
  });
  return address.slice(address.indexOf(",") + 1);
}

async function ask(event) {
  event.preventDefault();
  complain("");
  $("ask").disabled = true;
  show({ answer: "", reasoning: "", masks: [], router: [] }, "asking …");
  try {
    const asked = { image: await base64(state.file), question: $("question").value, regions: state.regions.map(written), think: $("think").checked, stream: true };
    const response = await fetch("v1/answer", { method: "POST", headers: { "Content-Type": "application/json", ...headers() }, body: JSON.stringify(asked) });
    if (!response.ok) throw new Error(await refused(response));
    await follow(response);
    ready();
  } catch (error) {
    $("reply").hidden = true;
    complain(error.message);
  } finally {
    $("ask").disabled = false;
  }
}

// Server-sent events as they come; a stream without its end was cut off.
async function follow(response) {
  const found = { answer: "", reasoning: "", masks: [], router: [] };
  let text = "", ended = false;
  for await (const part of response.body.pipeThrough(new TextDecoderStream())) {
    const events = (text + part).split("\n\n");
    text = events.pop();
    for (const [, name, data] of events.map((one) => one.match(/^event: (\w+)\ndata: (.*)$/s))) {
      const told = JSON.parse(data);
      if (name === "reasoning") found.reasoning += told.text;
      else Object.assign(found, told);
      ended = name === "done";
    }
    show(found, ended ? `model ${found.model} · request ${found.request_id}` : "writing …");
  }
  if (!ended) throw new Error("server: expected a whole answer, found one that was cut off");
}

function show({ answer, reasoning, masks, router }, about) {
  $("reply").hidden = false;
  state.masks = masks.map((mask, number) => tinted(mask, COLOURS[number % COLOURS.length]));
  const pieces = answer.split("<SEG>");
  $("answer").replaceChildren(...pieces.flatMap((piece, number) => (number ? [chip(number), piece] : [piece])));
  $("reasoning").textContent = reasoning;
  $("thought").hidden = !reasoning;
  experts(router);
  $("about").textContent = about;
  draw();
}

function chip(number) {
  const made = Object.assign(document.createElement("span"), { className: "mask", textContent: `mask ${number}` });
  made.style.background = `rgb(${COLOURS[(number - 1) % COLOURS.length]})`;
  return made;
}

// The mean share of each expert over the layers.
function experts(router) {
  const shares = Map.groupBy(router, ({ expert }) => expert);
  $("router").replaceChildren(...[...shares].map(([expert, uses]) => {
    const mean = uses.reduce((sum, { share }) => sum + share, 0) / uses.length;
    const row = document.createElement("tr"), meter = Object.assign(document.createElement("meter"), { value: mean });
    for (const content of [expert, meter, `${Math.round(100 * mean)} %`]) row.insertCell().append(content);
    return row;
  }));
  $("use").hidden = !shares.size;
}

$("file").addEventListener("change", ({ target }) => target.files[0] && open(target.files[0]));
$("view").addEventListener("pointerdown", (event) => {
  if (!state.bitmap) return;
  $("view").setPointerCapture(event.pointerId);
  state.start = { image: at(event), screen: { x: event.clientX, y: event.clientY } };
});
$("view").addEventListener("pointermove", (event) => {
  if (!state.start) return;
  state.draft = dragged(event);
  draw();
});
$("view").addEventListener("pointerup", (event) => {
  if (!state.start) return;
  const region = dragged(event);
  state.start = state.draft = null;
  mark([...state.regions, region]);
});
$("clear").addEventListener("click", () => mark([]));
$("token").addEventListener("change", ready);
$("form").addEventListener("submit", ask);
ready();
