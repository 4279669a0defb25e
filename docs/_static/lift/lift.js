// 2D joints to a 3D pose: the residual MLP that `docs/lift_page.py` wrote into `weights.js`, as a stack machine.
// Knows nothing of the page.
"use strict";

const Lift = (() => {
  const lifter = window.LIFTER;
  const numbers = halfToFloat(bytes(lifter.weights));

  function bytes(base64) {
    const text = atob(base64);
    const out = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) out[i] = text.charCodeAt(i);
    return new Uint16Array(out.buffer);
  }

  // IEEE float16: sign, five bits of exponent, ten of fraction; the smallest have no leading one.
  function halfToFloat(halves) {
    const out = new Float32Array(halves.length);
    for (let i = 0; i < halves.length; i++) {
      const h = halves[i], exponent = (h >> 10) & 31, fraction = h & 1023;
      const size = exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15);
      out[i] = h >> 15 ? -size : size;
    }
    return out;
  }

  // The padded box of fixed aspect around the joints: [centre x, centre y, height].
  function boxAround(joints) {
    const xs = joints.map((joint) => joint[0]), ys = joints.map((joint) => joint[1]);
    const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const { padding, aspect } = lifter.box;
    const side = Math.max((bottom - top) * padding, ((right - left) * padding) / aspect, 1e-6);
    return [(left + right) / 2, (top + bottom) / 2, side];
  }

  // Where the box stands and how large it is, as angles, standardised, and no further out than training went.
  function boxInformation([x, y, side]) {
    const { focal, size } = lifter.camera, centre = size / 2, { mean, std, range } = lifter.box;
    const raw = [(x - centre) / focal, (y - centre) / focal, side / focal];
    return raw.map((value, i) => Math.max(range[0], Math.min(range[1], (value - mean[i]) / std[i])));
  }

  const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
  const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
  const unit = (a) => a.map((value) => value / Math.sqrt(dot(a, a)));

  // The rows of the rotation after which the camera faces the middle of the box, without roll.
  function facingRotation([x, y]) {
    const { focal, size } = lifter.camera, centre = size / 2;
    const forward = unit([(x - centre) / focal, (y - centre) / focal, 1]);
    const right = unit(cross([0, 1, 0], forward));
    return [right, cross(forward, right), forward];
  }

  // Where pixels are once the camera has turned about its centre.
  function turned(joints, rotation) {
    const { focal, size } = lifter.camera, centre = size / 2;
    return joints.map(([u, v]) => {
      const ray = [(u - centre) / focal, (v - centre) / focal, 1];
      const [x, y, z] = rotation.map((row) => dot(row, ray));
      return [(x / z) * focal + centre, (y / z) * focal + centre];
    });
  }

  // The names of a mirrored body's joints, and their first coordinate the other way.
  function mirrored(joints) {
    const swap = joints.map((_, j) => j), { left, right } = lifter.skeleton;
    left.forEach((l, k) => ([swap[l], swap[right[k]]] = [right[k], l]));
    return swap.map((j) => [-joints[j][0], ...joints[j].slice(1)]);
  }

  function multiply({ rows, columns, offset }, x) {
    const out = new Float32Array(rows), bias = offset + rows * columns;
    for (let r = 0, w = offset; r < rows; r++) {
      let sum = numbers[bias + r];
      for (let c = 0; c < columns; c++) sum += numbers[w++] * x[c];
      out[r] = sum;
    }
    return out;
  }

  const STEPS = {
    linear: (state, step) => multiply(step, state.x),
    leaky: (state, step) => state.x.map((value) => (value < 0 ? step.slope * value : value)),
    normalise: (state, step) => {
      const norm = Math.max(Math.hypot(...state.x), step.eps);
      return state.x.map((value) => value / norm);
    },
    scale: (state, step) => state.x.map((value) => value * step.by),
    add_box: (state, step) => multiply(step, state.box).map((value, i) => value + state.x[i]),
    push: (state) => (state.stack.push(state.x), state.x),
    add: (state) => {
      const kept = state.stack.pop();
      return state.x.map((value, i) => value + kept[i]);
    },
    input: (state, step) => Float32Array.from(step.box ? [...state.joints, ...state.box] : state.joints),
  };

  function run(joints, box) {
    const state = { joints: joints.flat(), box, stack: [], x: null };
    for (const step of lifter.program) state.x = STEPS[step.step](state, step);
    return joints.map((_, j) => (j === 0 ? [0, 0, 0] : [...state.x.slice(3 * j, 3 * j + 3)]));
  }

  // (17, 2) pixels of the page's camera to (17, 3) metres from the pelvis: x right, y down, z away from the viewer.
  function lift(joints) {
    const rotation = lifter.facing ? facingRotation(boxAround(joints)) : null;
    const seen = rotation ? turned(joints, rotation) : joints;
    const box = boxAround(seen), information = boxInformation(box);
    const normalised = seen.map(([u, v]) => [(u - box[0]) / (box[2] / 2), (v - box[1]) / (box[2] / 2)]);
    const plain = run(normalised, information);
    const other = mirrored(run(mirrored(normalised), [-information[0], ...information.slice(1)]));
    const pose = plain.map((joint, j) => joint.map((value, i) => (value + other[j][i]) / 2));
    if (!rotation) return pose;
    return pose.map((joint) => [0, 1, 2].map((i) => dot(joint, rotation.map((row) => row[i])))); // and back
  }

  return { lift, skeleton: lifter.skeleton, camera: lifter.camera, poses: lifter.poses };
})();
