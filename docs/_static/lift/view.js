// The page around `lift.js`: a skeleton to drag, the lifted pose to turn.
"use strict";

(() => {
  const { names, parents, left, right } = Lift.skeleton;
  const { size, window: [windowX, windowY, windowSize] } = Lift.camera;
  const flat = document.getElementById("flat");
  const solid = document.getElementById("solid");
  const said = document.getElementById("said");
  const turning = document.getElementById("turning");
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
  const words = names.map((name) => name.replace(/^([lr])(?=hip|knee|ankle|shoulder|elbow|wrist)/, (side) =>
    side === "l" ? "left " : "right ").replace("_", " or "));

  let joints = [];
  let pose = [];
  let angle = 0.6, tilt = 0.12;
  let spinning = !calm.matches;

  const side = (j) => (left.includes(j) ? "left" : right.includes(j) ? "right" : "trunk");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  // ---- the flat skeleton ------------------------------------------------------------------------------------------

  const make = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const limbs = parents.map((parent, j) =>
    parent < 0 ? null : flat.appendChild(make("line", { class: "limb", stroke: `var(--${side(j)})` })));
  const handles = names.map((_, j) => {
    const handle = make("g", { class: "joint", tabindex: 0, role: "button", "aria-label": words[j], "data-joint": j });
    handle.append(make("circle", { class: "reach", r: 34 }), make("circle", { class: "dot", r: 13 }));
    flat.append(handle);
    return handle;
  });

  flat.setAttribute("viewBox", `${windowX} ${windowY} ${windowSize} ${windowSize}`); // the part of the image that is shown
  const inside = (value, start) => Math.min(start + windowSize, Math.max(start, value));

  function move(j, x, y) {
    joints[j] = [inside(x, windowX), inside(y, windowY)];
    update();
  }

  function update() {
    const start = performance.now();
    pose = Lift.lift(joints);
    const took = performance.now() - start;
    parents.forEach((parent, j) => {
      if (parent < 0) return;
      const [[x1, y1], [x2, y2]] = [joints[parent], joints[j]];
      Object.entries({ x1, y1, x2, y2 }).forEach(([name, value]) => limbs[j].setAttribute(name, value));
    });
    handles.forEach((handle, j) => handle.setAttribute("transform", `translate(${joints[j][0]} ${joints[j][1]})`));
    const heights = pose.map((joint) => joint[1]);
    said.textContent = `${(Math.max(...heights) - Math.min(...heights)).toFixed(2)} m tall, lifted in ${took.toFixed(0)} ms`;
    draw();
  }

  function pointIn(event) {
    const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(flat.getScreenCTM().inverse());
    return [x, y];
  }

  let held = null; // { joint, dx, dy }: which joint a pointer holds, and where in it
  flat.addEventListener("pointerdown", (event) => {
    const handle = event.target.closest(".joint");
    if (!handle) return;
    const joint = Number(handle.dataset.joint), [x, y] = pointIn(event);
    held = { joint, dx: joints[joint][0] - x, dy: joints[joint][1] - y };
    handle.classList.add("held");
    flat.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  flat.addEventListener("pointermove", (event) => {
    if (!held) return;
    const [x, y] = pointIn(event);
    move(held.joint, x + held.dx, y + held.dy);
  });
  const release = () => {
    if (held) handles[held.joint].classList.remove("held");
    held = null;
  };
  flat.addEventListener("pointerup", release);
  flat.addEventListener("pointercancel", release);

  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  flat.addEventListener("keydown", (event) => {
    const handle = event.target.closest(".joint"), arrow = ARROWS[event.key];
    if (!handle || !arrow) return;
    const j = Number(handle.dataset.joint), step = event.shiftKey ? 25 : 5;
    move(j, joints[j][0] + step * arrow[0], joints[j][1] + step * arrow[1]);
    event.preventDefault();
  });

  // ---- the solid pose ---------------------------------------------------------------------------------------------

  // Turned about the vertical through the pelvis, tilted towards the viewer, seen in perspective from 4 m.
  function seen([x, y, z], middle) {
    const [sin, cos] = [Math.sin(angle), Math.cos(angle)], [st, ct] = [Math.sin(tilt), Math.cos(tilt)];
    const turned = [cos * x + sin * z, y - middle, -sin * x + cos * z];
    const depth = 4 + st * -turned[1] + ct * turned[2];
    const scale = (0.46 * solid.width * 4) / depth;
    return [solid.width / 2 + scale * turned[0], solid.height / 2 + scale * (ct * turned[1] + st * turned[2]), depth];
  }

  function draw() {
    const pixels = Math.round(solid.clientWidth * Math.min(window.devicePixelRatio || 1, 2));
    if (pixels && solid.width !== pixels) solid.width = solid.height = pixels;
    const context = solid.getContext("2d");
    context.clearRect(0, 0, solid.width, solid.height);
    const heights = pose.map((joint) => joint[1]);
    const floor = Math.max(...heights) + 0.06, middle = (Math.max(...heights) + Math.min(...heights)) / 2;
    const unit = solid.width / 1000;

    context.beginPath(); // the floor
    for (let k = 0; k <= 48; k++) {
      const turn = (k / 48) * 2 * Math.PI;
      const [x, y] = seen([0.8 * Math.cos(turn), floor, 0.8 * Math.sin(turn)], middle);
      k ? context.lineTo(x, y) : context.moveTo(x, y);
    }
    context.fillStyle = colour("floor");
    context.fill();

    context.lineCap = "round";
    const line = (from, to, width, style) => {
      context.beginPath();
      context.moveTo(from[0], from[1]);
      context.lineTo(to[0], to[1]);
      context.lineWidth = width;
      context.strokeStyle = style;
      context.stroke();
    };
    const bones = parents.flatMap((parent, j) => (parent < 0 ? [] : [[parent, j]]));
    const onFloor = ([x, , z]) => seen([x, floor, z], middle);
    context.globalAlpha = 0.25;
    for (const [a, b] of bones) line(onFloor(pose[a]), onFloor(pose[b]), 7 * unit, colour("soft"));
    context.globalAlpha = 1;
    bones
      .map(([a, b]) => ({ a: seen(pose[a], middle), b: seen(pose[b], middle), style: colour(side(b)) }))
      .sort((one, other) => other.a[2] + other.b[2] - one.a[2] - one.b[2]) // the far ones first
      .forEach(({ a, b, style }) => line(a, b, (18 * unit * 8) / (a[2] + b[2]), style));
    const [hx, hy, depth] = seen(pose[names.indexOf("head")], middle);
    context.beginPath();
    context.arc(hx, hy, (24 * unit * 4) / depth, 0, 2 * Math.PI);
    context.fillStyle = colour("trunk");
    context.fill();
  }

  function spin(on) {
    spinning = on;
    turning.setAttribute("aria-pressed", String(on));
  }
  let last = null;
  function frame(now) {
    if (spinning && last !== null) {
      angle += ((now - last) / 1000) * 0.5;
      draw();
    }
    last = now;
    requestAnimationFrame(frame);
  }

  let grip = null;
  solid.addEventListener("pointerdown", (event) => {
    grip = { x: event.clientX, y: event.clientY, angle, tilt };
    spin(false);
    solid.setPointerCapture(event.pointerId);
  });
  solid.addEventListener("pointermove", (event) => {
    if (!grip) return;
    angle = grip.angle + ((event.clientX - grip.x) / solid.clientWidth) * 2 * Math.PI;
    tilt = Math.max(-0.2, Math.min(1.2, grip.tilt + ((event.clientY - grip.y) / solid.clientHeight) * 2));
    draw();
  });
  solid.addEventListener("pointerup", () => (grip = null));
  solid.addEventListener("pointercancel", () => (grip = null));
  solid.addEventListener("keydown", (event) => {
    if (event.key === " ") spin(!spinning);
    else if (ARROWS[event.key]) {
      spin(false);
      angle += 0.1 * ARROWS[event.key][0];
      tilt = Math.max(-0.2, Math.min(1.2, tilt + 0.05 * ARROWS[event.key][1]));
      draw();
    } else return;
    event.preventDefault();
  });

  // ---- buttons and the start --------------------------------------------------------------------------------------

  function take(given) {
    joints = given.map((joint) => [...joint]);
    update();
  }
  for (const [name, given] of Object.entries(Lift.poses)) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: name });
    button.addEventListener("click", () => take(given));
    document.getElementById("poses").append(button);
  }
  document.getElementById("mirror").addEventListener("click", () => {
    const swap = names.map((_, j) => j);
    left.forEach((l, k) => ([swap[l], swap[right[k]]] = [right[k], l]));
    take(swap.map((j) => [size - joints[j][0], joints[j][1]]));
  });
  turning.addEventListener("click", () => spin(!spinning));
  new ResizeObserver(draw).observe(solid);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

  spin(spinning);
  take(Object.values(Lift.poses)[0]);
  window.liftPage = { take, joints: () => joints, pose: () => pose, angle: () => angle };
  requestAnimationFrame(frame);
})();
