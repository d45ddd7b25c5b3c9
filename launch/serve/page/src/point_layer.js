/**
 * Points drawn by WebGL 2, one draw call a layer. Coordinates are whole numbers from 0 to 65,535 and stay so on the GPU.
 *
 * regl and the libraries on it compile functions from strings, which the content security policy of the service forbids.
 */


const VERTEX = `#version 300 es
precision highp float;
layout(location = 0) in uvec2 at;
layout(location = 1) in uint value;
uniform vec4 view;       // low x, low y, steps of the width, steps of the height
uniform float size;
uniform int kind;        // 0 one colour, 1 categories, 2 numbers
uniform vec2 domain;     // numbers at the ends of the colours
uniform vec4 flat_color;
uniform vec4 missing_color;
uniform sampler2D colors;
out vec4 color;

void main() {
  vec2 place = (vec2(at) - view.xy) / view.zw * 2.0 - 1.0;
  gl_Position = vec4(place, 0.0, 1.0);
  gl_PointSize = size;
  ivec2 room = textureSize(colors, 0);
  if (kind == 0) {
    color = flat_color;
  } else if (value == 65535u) {
    color = missing_color;
  } else if (kind == 1) {
    color = texelFetch(colors, ivec2(int(value) % room.x, int(value) / room.x), 0);
  } else {
    float share = clamp((float(value) / 65534.0 - domain.x) / (domain.y - domain.x), 0.0, 1.0);
    color = texelFetch(colors, ivec2(int(share * float(room.x - 1) + 0.5), 0), 0);
  }
  if (color.a == 0.0) gl_Position = vec4(2.0, 2.0, 2.0, 1.0);  // outside: hidden categories cost nothing
}`;

const FRAGMENT = `#version 300 es
precision highp float;
in vec4 color;
uniform float size;
uniform float opacity;
out vec4 drawn;

void main() {
  float apart = length(gl_PointCoord - 0.5) * size;
  float alpha = color.a * opacity * (size < 2.0 ? 1.0 : 1.0 - smoothstep(size * 0.5 - 1.0, size * 0.5, apart));
  drawn = vec4(color.rgb * alpha, alpha);
}`;

/** Return a layer on a canvas, or null if the browser has no WebGL 2. */
export function createPointLayer(canvas) {
  const gl = canvas.getContext("webgl2", { antialias: false, premultipliedAlpha: true, alpha: true });
  if (!gl) return null;
  return new PointLayer(gl);
}

class PointLayer {
  constructor(gl) {
    this.gl = gl;
    this.sets = new Map();
    this.program = link(gl);
    this.uniforms = {};
    for (const name of ["view", "size", "kind", "domain", "flat_color", "missing_color", "colors", "opacity"]) {
      this.uniforms[name] = gl.getUniformLocation(this.program, name);
    }
  }

  /** Keep coordinates (two numbers a point) under a name; null removes them. */
  setPoints(name, steps) {
    const gl = this.gl;
    const old = this.sets.get(name);
    if (old) {
      [old.at, old.values].forEach((buffer) => gl.deleteBuffer(buffer));
      gl.deleteTexture(old.texture);
      gl.deleteVertexArray(old.array);
      this.sets.delete(name);
    }
    if (!steps) return;
    const set = { n: steps.length / 2, array: gl.createVertexArray(), at: gl.createBuffer(), values: gl.createBuffer(), texture: gl.createTexture(), kind: 0 };
    gl.bindVertexArray(set.array);
    gl.bindBuffer(gl.ARRAY_BUFFER, set.at);
    gl.bufferData(gl.ARRAY_BUFFER, steps, gl.STATIC_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribIPointer(0, 2, gl.UNSIGNED_SHORT, 0, 0);
    gl.bindBuffer(gl.ARRAY_BUFFER, set.values);
    gl.bufferData(gl.ARRAY_BUFFER, new Uint16Array(set.n), gl.STATIC_DRAW);
    gl.enableVertexAttribArray(1);
    gl.vertexAttribIPointer(1, 1, gl.UNSIGNED_SHORT, 0, 0);
    this.sets.set(name, set);
  }

  /** Colour the points of a name: values are whole numbers, 65,535 where there is none. */
  setValues(name, values, kind, domain = [0, 1]) {
    const set = this.sets.get(name);
    if (!set || values.length !== set.n) return;
    this.gl.bindBuffer(this.gl.ARRAY_BUFFER, set.values);
    this.gl.bufferSubData(this.gl.ARRAY_BUFFER, 0, values);
    Object.assign(set, { kind: kind === "categorical" ? 1 : 2, domain });
  }

  clearValues(name) {
    const set = this.sets.get(name);
    if (set) set.kind = 0;
  }

  /** Give the colours of a name: red, green, blue and opacity from 0 to 255, row by row. */
  setColors(name, rgba) {
    const set = this.sets.get(name);
    if (!set) return;
    const gl = this.gl;
    const width = Math.min(256, rgba.length / 4);
    const height = Math.ceil(rgba.length / 4 / width);
    const padded = new Uint8Array(width * height * 4);
    padded.set(rgba);
    gl.bindTexture(gl.TEXTURE_2D, set.texture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, width, height, 0, gl.RGBA, gl.UNSIGNED_BYTE, padded);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
  }

  /** Draw layers, each {name, size, opacity, flat, missing}, in order. `view` is {x0, y0, width, height} in steps. */
  draw(view, layers) {
    const gl = this.gl;
    gl.viewport(0, 0, gl.canvas.width, gl.canvas.height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.useProgram(this.program);
    gl.uniform4f(this.uniforms.view, view.x0, view.y0, view.width, view.height);
    gl.uniform1i(this.uniforms.colors, 0);
    for (const layer of layers) {
      const set = this.sets.get(layer.name);
      if (!set || !set.n) continue;
      gl.uniform1f(this.uniforms.size, layer.size);
      gl.uniform1f(this.uniforms.opacity, layer.opacity);
      gl.uniform1i(this.uniforms.kind, layer.grey ? 0 : set.kind);
      gl.uniform2f(this.uniforms.domain, ...(set.domain ?? [0, 1]));
      gl.uniform4f(this.uniforms.flat_color, ...layer.flat.map((one) => one / 255), 1);
      gl.uniform4f(this.uniforms.missing_color, ...layer.missing.map((one) => one / 255), 1);
      gl.activeTexture(gl.TEXTURE0);
      gl.bindTexture(gl.TEXTURE_2D, set.texture);
      gl.bindVertexArray(set.array);
      gl.drawArrays(gl.POINTS, 0, set.n);
    }
    gl.bindVertexArray(null);
  }
}

function link(gl) {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
  return program;
}


