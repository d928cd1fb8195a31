"use strict";
const short = (id) => (id || "").replace(/^spiffe:\/\/[^/]+\/ns\/([^/]+)\/sa\//, "$1/") || "unknown";

// visible quotes what strangers chose where it holds characters without a shape of their own: control characters, line breaks,
// overrides of the direction of writing.
const hidden = /[^\P{C}]|[^\P{Z} ]/gu;
const visible = (text) => {
  const s = String(text ?? "");
  return s.search(hidden) < 0 ? s : JSON.stringify(s).replace(hidden, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
};

// Cells are set as text, never as markup: names and paths come from the network.
function fill(id, rows) {
  const body = document.querySelector(`#${id} tbody`);
  const columns = document.querySelectorAll(`#${id} th`);
  if (rows.length === 0) {
    const td = document.createElement("td");
    td.colSpan = columns.length;
    td.className = "empty";
    td.textContent = "Nothing yet";
    const tr = document.createElement("tr");
    tr.append(td);
    body.replaceChildren(tr);
    return;
  }
  body.replaceChildren(...rows.map((cells) => {
    const tr = document.createElement("tr");
    cells.forEach((cell, i) => {
      const td = document.createElement("td");
      const [text, style] = Array.isArray(cell) ? cell : [cell, ""];
      td.textContent = visible(text);
      td.className = [columns[i].className, style].join(" ").trim();
      tr.append(td);
    });
    return tr;
  }));
}

const bad = (n) => [n, n > 0 ? "bad" : ""];

function remaining(expiry) {
  const s = Math.round((new Date(expiry) - Date.now()) / 1000);
  if (s <= 0) return ["expired", "bad"];
  const text = s >= 172800 ? `${Math.floor(s / 86400)} d` : s >= 7200 ? `${Math.floor(s / 3600)} h` : s >= 120 ? `${Math.floor(s / 60)} min` : `${s} s`;
  return [text, s < 60 ? "warn" : "good"];
}

function decision(record) {
  const e = record.event;
  const verdict = (e.verdict || "").replace("VERDICT_", "").toLowerCase() || (e.lost ? `${e.lost} lost` : "");
  const request = (e.kind || "KIND_REQUEST") === "KIND_REQUEST";
  const serial = e.certificateSerial ? `certificate ${e.certificateSerial.slice(0, 16)}` : "";
  const trial = e.trial ? `; on trial ${e.trial.verdict.replace("VERDICT_", "").toLowerCase()}: ${e.trial.policy || e.trial.reason}` : "";
  const peer = (proven, claimed) => proven ? short(proven) : claimed ? `claims ${claimed}` : "";
  return [
    new Date(e.time).toLocaleTimeString(),
    [verdict, verdict === "allowed" ? "good" : "bad"],
    peer(e.sourceIdentity, e.claimedSource) || e.sourceAddress || "unknown",
    request ? peer(e.destinationIdentity, e.claimedDestination) || e.destinationService || e.destinationAddress || "unknown" : short(e.observer?.identity),
    [e.protocol, e.method, e.path, e.responseCode].filter(Boolean).join(" "),
    (e.policy || e.reason || serial || "-") + trial,
  ];
}

async function refresh() {
  const state = document.getElementById("state");
  try {
    const [overview, audit] = await Promise.all([fetch("v1/overview"), fetch("v1/audit?last=25")]);
    if (!overview.ok || !audit.ok) throw new Error(`Mixer answered ${overview.status} and ${audit.status}`);
    const mesh = await overview.json();
    const records = (await audit.text()).split("\n").filter(Boolean).map((l) => JSON.parse(l)).reverse();
    fill("services", mesh.services.map((s) => [s.name, s.namespace, s.requests, bad(s.denied), bad(s.errors)]));
    fill("edges", mesh.edges.map((e) => [short(e.source), e.service, e.security === "mutual_tls" ? ["mutual TLS", "good"] : ["plaintext", "bad"], e.requests, bad(e.denied), bad(e.errors)]));
    fill("audit", records.map(decision));
    fill("certificates", mesh.certificates.map((c) => [`${c.namespace}/${c.pod}`, c.node, short(c.identity), c.serial.slice(0, 16), remaining(c.expiry)]));
    state.textContent = `${mesh.services.length} services, ${mesh.certificates.length} workloads, updated ${new Date().toLocaleTimeString()}`;
    state.className = "";
  } catch (err) {
    state.textContent = `Cannot reach Mixer: ${err.message}`;
    state.className = "bad";
  }
}

refresh();
setInterval(refresh, 3000);
