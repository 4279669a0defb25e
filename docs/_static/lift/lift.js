// 2D joints to a 3D pose: the residual MLP that `unihpe_ref/browser.py` wrote into `weights.js`, as a stack machine.
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

  // Where the box stands and how large it is, as angles, standardised.
  function boxInformation([x, y, side]) {
    const { focal, size } = lifter.camera, centre = size / 2;
    const raw = [(x - centre) / focal, (y - centre) / focal, side / focal];
    return raw.map((value, i) => (value - lifter.box.mean[i]) / lifter.box.std[i]);
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

  // (17, 2) pixels of the page's camera to (17, 3) metres from the pelvis: x right, y down, z away from the viewer.
  function lift(joints) {
    const box = boxAround(joints);
    const normalised = joints.flatMap(([u, v]) => [(u - box[0]) / (box[2] / 2), (v - box[1]) / (box[2] / 2)]);
    const state = { joints: normalised, box: boxInformation(box), stack: [], x: null };
    for (const step of lifter.program) state.x = STEPS[step.step](state, step);
    const pose = [];
    for (let j = 0; j < joints.length; j++) pose.push(j === 0 ? [0, 0, 0] : [...state.x.slice(3 * j, 3 * j + 3)]);
    return pose;
  }

  return { lift, skeleton: lifter.skeleton, camera: lifter.camera, poses: lifter.poses };
})();
