// The page of one case. NiiVue draws the scans and the surfaces; contours, letters, bars and the
// crosshair are drawn on a second canvas above it, as lines and not as voxels.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const PLANES = [
    { name: "axial", axis: 2, across: 0, along: 1, letters: "RLAP" },
    { name: "coronal", axis: 1, across: 0, along: 2, letters: "RLSI" },
    { name: "sagittal", axis: 0, across: 1, along: 2, letters: "APSI" },
  ]; // in the order of NiiVue's slice types
  const QUARTERS = [[0, 0], [0.5, 0], [0, 0.5], [0.5, 0.5]];
  const LAYOUTS = [
    ["All", QUARTERS.map(([x, y], type) => [type === 3 ? 4 : type, x, y, 0.5, 0.5])],
    ...["Axial", "Coronal", "Sagittal", "3D"].map((name, type) => [
      name, [[type === 3 ? 4 : type, 0, 0, 1, 1]],
    ]),
  ];
  const state = { sequence: data.first, layout: 0, heat: null, heatOpacity: 0.6, crosshair: true };
  const images = {}; // by sequence, or `heat/map`
  const windows = {}; // by sequence: [black, white]
  const outlines = new Map();
  let nv = null;

  // --- small things ---------------------------------------------------------------------------

  function element(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in made && name !== "list") made[name] = value;
      else made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }

  function fail(text) {
    document.documentElement.dataset.state = "error";
    $("message").textContent = text;
  }

  const number = (value, digits) =>
    value === null || value === undefined ? "–" : value.toFixed(digits);

  function signed(value) {
    return (value < 0 ? "−" : "+") + Math.abs(value).toFixed(0);
  }

  function bytes(id) {
    const text = atob($("blob-" + id).textContent);
    const found = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) found[i] = text.charCodeAt(i);
    return found;
  }

  async function unzipped(id) {
    const stream = new Blob([bytes(id)]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }

  async function image(id, colormap, range) {
    if (!images[id]) {
      images[id] = await niivue.NVImage.loadFromBase64({
        base64: $("blob-" + id).textContent,
        name: id + ".nii.gz",
        colormap,
        cal_min: range[0],
        cal_max: range[1],
      });
    }
    return images[id];
  }

  // --- contours -------------------------------------------------------------------------------

  // The border between voxels inside and outside in one slice, half-way between their centres, as
  // closed lines in voxel coordinates (marching squares). The inside is on the left of each line.
  function contour(inside, wide, high) {
    const at = (u, v) => u >= 0 && v >= 0 && u < wide && v < high && inside[v * wide + u];
    const next = new Map();
    const link = (a, b) => (next.has(a) ? next.get(a).push(b) : next.set(a, [b]));
    const key = (u, v) => (v + 2) * 4 * (wide + 4) + 2 * (u + 2); // points at half voxels
    for (let v = -1; v < high; v++) {
      for (let u = -1; u < wide; u++) {
        const a = at(u, v), b = at(u + 1, v), c = at(u + 1, v + 1), d = at(u, v + 1);
        const kind = (a ? 1 : 0) | (b ? 2 : 0) | (c ? 4 : 0) | (d ? 8 : 0);
        if (kind === 0 || kind === 15) continue;
        const low = key(u + 0.5, v), right = key(u + 1, v + 0.5);
        const top = key(u + 0.5, v + 1), left = key(u, v + 0.5);
        const steps = {
          1: [left, low], 2: [low, right], 3: [left, right], 4: [right, top], 6: [low, top],
          7: [left, top], 8: [top, left], 9: [top, low], 11: [top, right], 12: [right, left],
          13: [right, low], 14: [low, left], 5: [left, low, right, top], 10: [low, right, top, left],
        }[kind];
        for (let i = 0; i < steps.length; i += 2) link(steps[i], steps[i + 1]);
      }
    }
    const path = [];
    for (const [start, ends] of next) {
      while (ends.length) {
        const line = [start];
        let here = ends.pop();
        while (here !== start) {
          line.push(here);
          here = next.get(here).pop();
        }
        path.push(line.map((k) => {
          const v = Math.floor(k / (2 * (wide + 4)));
          return [(k - v * 2 * (wide + 4)) / 2 - 2, v / 2 - 2];
        }));
      }
    }
    return path;
  }

  // Of the region `bit` of a segmentation, without the regions `but`.
  function outline(number, bit, but, plane, index) {
    const id = [number, bit, but, plane.axis, index].join();
    if (!outlines.has(id)) {
      const bits = data.segmentations[number].voxels;
      const [nx, ny] = data.shape, steps = [1, nx, nx * ny];
      const wide = data.shape[plane.across], high = data.shape[plane.along];
      const inside = new Uint8Array(wide * high);
      for (let v = 0; v < high; v++) {
        let at = index * steps[plane.axis] + v * steps[plane.along];
        for (let u = 0; u < wide; u++, at += steps[plane.across]) {
          inside[v * wide + u] = bits[at] & bit && !(bits[at] & but) ? 1 : 0;
        }
      }
      outlines.set(id, contour(inside, wide, high));
    }
    return outlines.get(id);
  }

  // --- the drawing above the scans ------------------------------------------------------------

  // How a tile's voxels become pixels of the canvas: u -> x0 + u * dx, v -> y0 + v * dy.
  function placeOf(tile, plane) {
    const [left, top, wide, high] = tile.leftTopWidthHeight;
    const at = (voxel) => {
      const frac = voxel.map((each, axis) => (each + 0.5) / data.shape[axis]);
      const mm = nv.frac2mm(frac, 0, nv.opts.isSliceMM);
      return [
        left + (wide * (mm[plane.across] - tile.leftTopMM[0])) / tile.fovMM[0],
        top + high * (1 - (mm[plane.along] - tile.leftTopMM[1]) / tile.fovMM[1]),
      ];
    };
    const unit = [0, 0, 0];
    const [x0, y0] = at(unit);
    unit[plane.across] = unit[plane.along] = 1;
    const [x1, y1] = at(unit);
    return { x0, y0, dx: x1 - x0, dy: y1 - y0 };
  }

  function sliceIndex(plane) {
    const size = data.shape[plane.axis];
    return Math.min(size - 1, Math.max(0, Math.floor(nv.scene.crosshairPos[plane.axis] * size)));
  }

  function drawAbove() {
    const canvas = $("drawing"), below = $("scan");
    canvas.width = below.width;
    canvas.height = below.height;
    const pen = canvas.getContext("2d");
    const dpr = nv.uiData.dpr || 1;
    for (const tile of nv.screenSlices) {
      if (tile.axCorSag > 2) continue;
      pen.save();
      pen.beginPath();
      pen.rect(...tile.leftTopWidthHeight);
      pen.clip();
      drawTile(pen, tile, PLANES[tile.axCorSag], dpr);
      pen.restore();
    }
  }

  function pathOf(lines, place) {
    const path = new Path2D();
    for (const line of lines) {
      line.forEach(([u, v], first) => {
        const point = [place.x0 + u * place.dx, place.y0 + v * place.dy];
        if (first === 0) path.moveTo(...point);
        else path.lineTo(...point);
      });
      path.closePath();
    }
    return path;
  }

  function drawTile(pen, tile, plane, dpr) {
    const place = placeOf(tile, plane), index = sliceIndex(plane);
    data.segmentations.forEach((segmentation, which) => {
      if (!segmentation.shown) return;
      const shown = data.regions.map(({ colour }, number) => ({ colour, bit: 1 << number }))
        .filter((_, number) => data.regions[number].shown);
      const path = (bit, but) => pathOf(outline(which, bit, but, plane, index), place);
      pen.globalAlpha = segmentation.fill;
      shown.forEach(({ colour, bit }, number) => {
        if (segmentation.fill === 0) return;
        // Each voxel in the colour of the innermost region that it is in.
        const inner = shown.slice(number + 1).reduce((bits, each) => bits | each.bit, 0);
        pen.fillStyle = colour;
        pen.fill(path(bit, inner), "evenodd");
      });
      pen.globalAlpha = 1;
      pen.lineWidth = 1.6 * dpr;
      pen.setLineDash(segmentation.dashed ? [5 * dpr, 4 * dpr] : []);
      for (const { colour, bit } of shown) {
        pen.strokeStyle = colour;
        pen.stroke(path(bit, 0));
      }
    });
    pen.setLineDash([]);
    if (state.crosshair) drawCrosshair(pen, tile, plane, place, dpr);
    drawWords(pen, tile, plane, place, index, dpr);
  }

  function drawCrosshair(pen, tile, plane, place, dpr) {
    const [left, top, wide, high] = tile.leftTopWidthHeight, gap = 9 * dpr;
    const voxel = (axis) => nv.scene.crosshairPos[axis] * data.shape[axis] - 0.5;
    const x = place.x0 + voxel(plane.across) * place.dx;
    const y = place.y0 + voxel(plane.along) * place.dy;
    pen.beginPath();
    for (const [a, b, c, d] of [
      [left, y, x - gap, y], [x + gap, y, left + wide, y],
      [x, top, x, y - gap], [x, y + gap, x, top + high],
    ]) {
      pen.moveTo(a, b);
      pen.lineTo(c, d);
    }
    pen.strokeStyle = "rgba(255, 255, 255, 0.5)";
    pen.lineWidth = dpr;
    pen.stroke();
  }

  function drawWords(pen, tile, plane, place, index, dpr) {
    const [left, top, wide, high] = tile.leftTopWidthHeight, margin = 6 * dpr;
    pen.fillStyle = "#f2f2f2";
    pen.shadowColor = "#000";
    pen.shadowBlur = 3 * dpr;
    pen.font = `600 ${13 * dpr}px system-ui, sans-serif`;
    const middle = [left + wide / 2, top + high / 2];
    const places = [
      [left + margin, middle[1], "left", "middle"], [left + wide - margin, middle[1], "right", "middle"],
      [middle[0], top + margin, "center", "top"], [middle[0], top + high - margin, "center", "bottom"],
    ];
    places.forEach(([x, y, across, along], side) => {
      pen.textAlign = across;
      pen.textBaseline = along;
      pen.fillText(plane.letters[side], x, y);
    });
    pen.font = `${12 * dpr}px system-ui, sans-serif`;
    pen.textAlign = "left";
    pen.textBaseline = "top";
    const file = data.fileStart[plane.axis] + data.fileStep[plane.axis] * index;
    const mm = nv.frac2mm(nv.scene.crosshairPos, 0, true)[plane.axis];
    const words = [`${plane.name} ${file}`, `${"xyz"[plane.axis]} = ${signed(mm)} mm`];
    const both = words.join("   ");
    // On one line if that ends before the letter in the middle.
    const lines = pen.measureText(both).width < wide / 2 - 3 * margin ? [both] : words;
    lines.forEach((line, row) => pen.fillText(line, left + margin, top + margin + row * 16 * dpr));
    const bar = (50 / data.spacing[plane.across]) * Math.abs(place.dx);
    if (bar < wide * 0.8) {
      const y = top + high - 10 * dpr;
      pen.fillRect(left + 10 * dpr, y, bar, 2 * dpr);
      pen.textBaseline = "bottom";
      pen.fillText("50 mm", left + 10 * dpr, y - 2 * dpr);
    }
  }

  // --- what is shown --------------------------------------------------------------------------

  async function showSequence(id) {
    const sequence = data.sequences.find((each) => each.id === id && each.present);
    if (!sequence) return;
    state.sequence = id;
    const scan = await image(id, "gray", windows[id] || sequence.window);
    nv.volumes[0] = scan;
    refresh();
  }

  async function showHeat(id) {
    state.heat = id;
    while (nv.volumes.length > 1) nv.volumes.pop();
    if (id) {
      const heat = data.heats.find((each) => each.maps.some((map) => map.id === id));
      const laid = await image(id, "brats-heat", [0, heat.top]);
      laid.opacity = state.heatOpacity;
      nv.volumes[1] = laid;
    }
    refresh();
  }

  function refresh() {
    nv.back = nv.volumes[0];
    nv.overlays = nv.volumes.slice(1);
    nv.updateGLVolume();
    showPressed();
    showWindow();
    showPlace();
  }

  // In 3D one segmentation at a time: the first that is switched on.
  function showMeshes() {
    const first = data.segmentations.findIndex((each) => each.shown);
    for (const mesh of data.meshes) {
      mesh.drawn.visible = mesh.segmentation === first && data.regions[mesh.region].shown;
    }
    nv.drawScene();
  }

  function showLayout(number) {
    state.layout = number;
    nv.setCustomLayout(
      LAYOUTS[number][1].map(([sliceType, ...position]) => ({ sliceType, position }))
    );
    showPressed();
  }

  function showPressed() {
    for (const button of $("sequences").children) {
      button.setAttribute("aria-pressed", button.value === state.sequence);
    }
    [...$("views").children].forEach((button, index) => {
      button.setAttribute("aria-pressed", index === state.layout);
    });
  }

  function showWindow() {
    const { cal_min: black, cal_max: white } = nv.volumes[0];
    windows[state.sequence] = [black, white];
    if (!$("level")) return;
    const [low, high] = data.sequences.find((each) => each.id === state.sequence).range;
    const step = (high - low) / 500;
    for (const [id, value, least, most] of [
      ["level", (black + white) / 2, low, high], ["width", white - black, step, high - low],
    ]) {
      Object.assign($(id), { min: least, max: most, step, value });
      $(id).parentElement.querySelector("output").textContent = value.toFixed(step < 0.1 ? 2 : 0);
    }
  }

  function setWindow(level, width) {
    const half = Math.max(width, 1e-6) / 2;
    Object.assign(nv.volumes[0], { cal_min: level - half, cal_max: level + half });
    nv.updateGLVolume();
    showWindow();
  }

  function resetWindow() {
    const [black, white] = data.sequences.find((each) => each.id === state.sequence).window;
    setWindow((black + white) / 2, white - black);
  }

  // The crosshair's place, and what lies there.
  function showPlace() {
    const frac = nv.scene.crosshairPos;
    const voxel = PLANES.map((_, axis) =>
      Math.min(data.shape[axis] - 1, Math.max(0, Math.floor(frac[axis] * data.shape[axis]))));
    const mm = nv.frac2mm(frac, 0, true);
    const at = voxel[0] + data.shape[0] * (voxel[1] + data.shape[1] * voxel[2]);
    const rows = [];
    const row = (name, ...cells) => rows.push(
      element("tr", {}, element("th", { textContent: name }),
        ...cells.map((cell) => element("td", { textContent: cell }))));
    row("mm (R, A, S)", ...[0, 1, 2].map((axis) => signed(mm[axis])));
    const files = [0, 1, 2].map((axis) => data.fileStart[axis] + data.fileStep[axis] * voxel[axis]);
    row("voxel", ...data.fileOrder.map((axis) => files[axis]));
    for (const { id, name, digits } of data.sequences) {
      if (images[id]) row(name, "", "", number(valueAt(images[id], at), digits));
    }
    if (state.heat && images[state.heat]) {
      const heat = data.heats.find((each) => each.maps.some((map) => map.id === state.heat));
      row(heat.name, "", "", number(valueAt(images[state.heat], at), heat.top > 1 ? 0 : 2));
    }
    data.segmentations.forEach((segmentation) => {
      const inside = data.regions.filter((_, bit) => segmentation.voxels[at] & (1 << bit));
      row(segmentation.name, "", "", inside.map((each) => each.name).join(", ") || "–");
    });
    $("place").replaceChildren(
      element("h2", { textContent: "At the crosshair" }),
      element("table", {}, element("tbody", {}, ...rows)));
  }

  function valueAt(scan, index) {
    return scan.img[index] * scan.hdr.scl_slope + scan.hdr.scl_inter;
  }

  // --- the panel ------------------------------------------------------------------------------

  function buildHeader() {
    $("case").textContent = data.case;
    data.sequences.forEach((sequence, index) => $("sequences").append(
      element("button", {
        type: "button", value: sequence.id, textContent: sequence.name, disabled: !sequence.present,
        title: sequence.present ? `key ${index + 1}` : "the case does not have this sequence",
        onclick: () => showSequence(sequence.id),
      })));
    LAYOUTS.forEach(([name], index) => $("views").append(
      element("button", { type: "button", textContent: name, title: "key V", onclick: () => showLayout(index) })));
  }

  function buildRegions() {
    if (!data.segmentations.length) {
      $("regions").append(
        element("h2", { textContent: "Regions" }),
        element("p", { className: "faint", textContent: "No segmentation was given." }));
      return;
    }
    const names = data.segmentations.map((each) => each.name);
    const scored = Object.keys(data.scores).length > 0;
    const heads = ["region", ...names.map((name) => (names.length > 1 ? (name === "prediction" ? "pred. ml" : "ref. ml") : "ml")),
      ...(scored ? ["Dice", "HD95"] : [])];
    const rows = data.regions.map((region, index) => {
      const box = element("input", {
        type: "checkbox", checked: true, id: "region-" + region.name,
        onchange: (event) => setRegion(index, event.target.checked),
      });
      const swatch = element("span", { className: "swatch" });
      swatch.style.background = region.colour;
      const cells = data.segmentations.map((each) =>
        region.name in each.volumes ? (each.volumes[region.name] / 1000).toFixed(1) : "–");
      const score = data.scores[region.name];
      if (scored) cells.push(number(score && score.dice, 3), number(score && score.hausdorff95_mm, 1));
      return element("tr", { title: region.title },
        element("th", {}, element("label", { className: "switch" }, box, swatch, region.name)),
        ...cells.map((cell) => element("td", { textContent: cell })));
    });
    $("regions").append(
      element("h2", { textContent: scored ? "Volumes and scores" : "Volumes" }),
      element("table", {},
        element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { textContent: head })))),
        element("tbody", {}, ...rows)));
  }

  function setRegion(index, shown) {
    data.regions[index].shown = shown;
    $("region-" + data.regions[index].name).checked = shown;
    showMeshes();
  }

  function setSegmentation(index, shown) {
    data.segmentations[index].shown = shown;
    $("segmentation-" + index).checked = shown;
    showMeshes();
  }

  function slider(name, id, value, onInput, lead = name) {
    const output = element("output", { textContent: Math.round(value * 100) + " %" });
    const input = element("input", {
      type: "range", min: 0, max: 1, step: 0.05, value, id, "aria-label": name,
      oninput: (event) => {
        output.textContent = Math.round(event.target.value * 100) + " %";
        onInput(Number(event.target.value));
      },
    });
    return element("div", { className: "row" }, lead, input, output);
  }

  function lineSample(dashed) {
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg"), line = document.createElementNS(space, "line");
    for (const [name, value] of Object.entries({ width: 26, height: 10 })) svg.setAttribute(name, value);
    for (const [name, value] of Object.entries({
      x1: 1, x2: 25, y1: 5, y2: 5, stroke: "#f2f2f2", "stroke-width": 2,
      "stroke-dasharray": dashed ? "5 4" : "none",
    })) line.setAttribute(name, value);
    svg.append(line);
    return svg;
  }

  function buildLayers() {
    const parts = [];
    data.segmentations.forEach((segmentation, index) => {
      const box = element("input", {
        type: "checkbox", checked: true, id: "segmentation-" + index,
        onchange: (event) => setSegmentation(index, event.target.checked),
      });
      const lead = element("label", { className: "switch" },
        box, lineSample(segmentation.dashed), segmentation.name);
      parts.push(slider(segmentation.name + " opacity", "fill-" + index, segmentation.fill, (value) => {
        segmentation.fill = value;
        nv.drawScene();
      }, lead));
    });
    for (const heat of data.heats) {
      for (const map of heat.maps) {
        const box = element("input", {
          type: "checkbox", id: "heat-" + map.id, className: "heat",
          onchange: (event) => {
            const on = event.target.checked;
            for (const other of document.querySelectorAll("input.heat")) other.checked = false;
            event.target.checked = on;
            showHeat(on ? map.id : null);
          },
        });
        parts.push(slider(`${heat.name} ${map.name} opacity`, "opacity-" + map.id, state.heatOpacity, (value) => {
          state.heatOpacity = value;
          if (state.heat === map.id) nv.setOpacity(1, value);
        }, element("label", { className: "switch" }, box, `${heat.name} ${map.name}`)));
      }
    }
    if (parts.length) $("layers").append(element("h2", { textContent: "Layers and their opacity" }), ...parts);
  }

  function buildWindow() {
    const apply = () => setWindow(Number($("level").value), Number($("width").value));
    const row = (id, name) => element("div", { className: "row" }, element("label", { htmlFor: id, textContent: name }),
      element("input", { type: "range", id, oninput: apply }), element("output"));
    $("window").append(
      element("h2", { textContent: "Window" }), row("level", "level"), row("width", "width"),
      element("button", { type: "button", textContent: "Reset", title: "key R", onclick: resetWindow }));
  }

  function buildNotes() {
    $("notes").append(...data.notes.map((note) => element("p", { className: "note", textContent: note })));
  }

  // --- keys -----------------------------------------------------------------------------------

  function move(axis, by) {
    const steps = [0, 0, 0];
    steps[axis] = by;
    nv.moveCrosshairInVox(...steps);
    nv.drawScene();
    showPlace();
  }

  const middleOf = (voxel) => voxel.map((each, axis) => (each + 0.5) / data.shape[axis]);

  function toTumour() {
    nv.scene.crosshairPos = middleOf(data.focus);
    nv.setPan2Dxyzmm([0, 0, 0, 1]);
    nv.drawScene();
    showPlace();
  }

  // In and out around the crosshair.
  function zoom(by) {
    const mm = nv.frac2mm(nv.scene.crosshairPos, 0, nv.opts.isSliceMM);
    const middle = nv.frac2mm([0.5, 0.5, 0.5], 0, nv.opts.isSliceMM);
    const factor = Math.min(8, Math.max(1, nv.scene.pan2Dxyzmm[3] * by));
    // NiiVue shows (place - pan) / zoom.
    const pan = [0, 1, 2].map((axis) => (factor > 1 ? middle[axis] - factor * mm[axis] : 0));
    nv.setPan2Dxyzmm([...pan, factor]);
    nv.drawScene();
  }

  const KEYS = [
    ["1 2 3 4", "T1, T1ce, T2, FLAIR", null],
    ["V", "next view: all, one plane, 3D", () => showLayout((state.layout + 1) % LAYOUTS.length), "v"],
    ["P", "prediction on or off", () => toggle("prediction"), "p"],
    ["F", "reference on or off", () => toggle("reference"), "f"],
    ["W T E", "WT, TC, ET on or off", null],
    ["U", "uncertainty or probability on or off", () => toggleHeat(), "u"],
    ["↑ ↓", "next or previous axial slice", null],
    ["← →", "next or previous sagittal slice", null],
    ["Page ↑ ↓", "next or previous coronal slice", null],
    ["Home", "to the tumour", toTumour, "Home"],
    ["+ −", "zoom in or out at the crosshair", null],
    ["C", "crosshair on or off", () => { state.crosshair = !state.crosshair; nv.drawScene(); }, "c"],
    ["R", "reset the window", resetWindow, "r"],
    ["click, drag", "move the crosshair; turn the 3D view", null],
    ["right drag", "change window and level", null],
    ["wheel", "through the slices; zoom the 3D view", null],
    ["touch", "drag to move; pinch to zoom", null],
  ];
  const ACTIONS = {
    ArrowUp: () => move(2, 1), ArrowDown: () => move(2, -1),
    ArrowLeft: () => move(0, 1), ArrowRight: () => move(0, -1),
    PageUp: () => move(1, 1), PageDown: () => move(1, -1),
    "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8),
    w: () => toggleRegion("WT"), t: () => toggleRegion("TC"), e: () => toggleRegion("ET"),
    ...Object.fromEntries(KEYS.filter(([, , action]) => action).map(([, , action, key]) => [key, action])),
    ...Object.fromEntries(data.sequences.map(({ id }, index) => [index + 1, () => showSequence(id)])),
  };

  function toggle(name) {
    const index = data.segmentations.findIndex((each) => each.name === name);
    if (index >= 0) setSegmentation(index, !data.segmentations[index].shown);
  }

  function toggleRegion(name) {
    const index = data.regions.findIndex((each) => each.name === name);
    if (index >= 0) setRegion(index, !data.regions[index].shown);
  }

  function toggleHeat() {
    const box = document.querySelector("input.heat:checked") || document.querySelector("input.heat");
    if (box) box.click();
  }

  // Before NiiVue sees the key, which has other meanings for some of them.
  function onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const inSlider = event.target.type === "range" && /^(Arrow|Page|Home)/.test(event.key);
    const action = ACTIONS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (event.target.id === "scan") event.stopPropagation();
    if (!action || inSlider) return;
    event.preventDefault();
    action();
  }

  // --- opening --------------------------------------------------------------------------------

  async function open() {
    buildHeader();
    if (!document.createElement("canvas").getContext("webgl2")) {
      fail("This browser offers no WebGL 2, which the viewer needs. Switch on hardware acceleration " +
        "or open the page in a current Firefox, Chrome, Edge or Safari (15 or later).");
      return;
    }
    if (typeof DecompressionStream === "undefined") {
      fail("This browser is too old for the viewer: open the page in a current Firefox, Chrome, Edge or Safari.");
      return;
    }
    for (const region of data.regions) region.shown = true;
    for (const segmentation of data.segmentations) {
      segmentation.shown = true;
      segmentation.fill = segmentation.dashed ? 0 : 0.15;
    }
    await Promise.all(data.segmentations.map(async (segmentation, index) => {
      segmentation.voxels = new Uint8Array(await unzipped("masks-" + index));
    }));
    nv = new niivue.Niivue({
      isRadiologicalConvention: true, sagittalNoseLeft: true, isOrientationTextVisible: false,
      isOrientCube: true, crosshairWidth: 0, meshThicknessOn2D: 0, meshXRay: 0.5, dragMode: 9,
      dragAndDropEnabled: false, logLevel: "error", loadingText: "", clipPlaneHotKey: "",
      viewModeHotKey: "", cycleClipPlaneHotKey: "", backColor: [0, 0, 0, 1],
    });
    // Everything is drawn once, at the end: without a GPU that takes a second.
    const draw = nv.drawScene.bind(nv);
    nv.drawScene = () => {
      if (!state.open) return "";
      const drawn = draw();
      drawAbove();
      const [black, white] = windows[state.sequence] || [];
      const { cal_min: low, cal_max: high } = nv.volumes[0];
      if (low !== black || high !== white) showWindow(); // NiiVue's right button changed it
      return drawn;
    };
    nv.onLocationChange = showPlace;
    await nv.attachToCanvas($("scan"));
    nv.addColormap("brats-heat", data.heatColours);
    buildRegions();
    buildLayers();
    buildWindow();
    buildNotes();
    $("keys").querySelector("dl").append(...KEYS.flatMap(([keys, text]) => [
      element("dt", { textContent: keys }), element("dd", { textContent: text })]));
    const sequence = data.sequences.find((each) => each.id === state.sequence);
    // Not by addMesh and addVolume, which send the whole scan to the GPU anew each time.
    nv.volumes = [await image(sequence.id, "gray", sequence.window)];
    for (const mesh of data.meshes) {
      mesh.drawn = await niivue.NVMesh.readMesh(await unzipped(mesh.id), mesh.id + ".mz3", nv.gl,
        mesh.opacity, new Uint8Array([...mesh.rgb, 255]));
      nv.meshes.push(mesh.drawn);
    }
    showMeshes();
    showLayout(0);
    nv.scene.crosshairPos = middleOf(data.focus);
    // From the side that the tumour is on, a little from the front and from above.
    nv.setRenderAzimuthElevation(data.focus[0] > data.shape[0] / 2 ? 240 : 120, 12);
    state.open = true;
    refresh();
    document.addEventListener("keydown", onKey, true);
    document.addEventListener("keyup", (event) => event.target.id === "scan" && event.stopPropagation(), true);
    nv.gl.finish();
    requestAnimationFrame(() => requestAnimationFrame(() => {
      if (document.documentElement.dataset.state !== "error") document.documentElement.dataset.state = "ready";
      openOthers();
    }));
  }

  // The other sequences, one after the other, so that the page answers in between.
  async function openOthers() {
    for (const { id, present, window: range } of data.sequences) {
      if (!present || images[id]) continue;
      await new Promise((resolve) => setTimeout(resolve, 30));
      await image(id, "gray", range);
      showPlace();
    }
    document.documentElement.dataset.sequences = "all";
  }

  window.bratsView = { get niivue() { return nv; }, data, state, placeOf, PLANES };
  window.addEventListener("error", (event) => fail("The page failed: " + event.message));
  window.addEventListener("unhandledrejection", (event) =>
    fail("The page failed: " + (event.reason && event.reason.message || event.reason)));
  open();
})();
