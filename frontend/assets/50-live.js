/* A job followed live: server-sent events while they work, the analysis itself every two seconds where they do not. */
(function () {
  "use strict";
  const cipm = window.cipm, ENDED = ["done", "failed", "cancelled"];

  /* Follow a job: `tell(job)` whenever it changes, until it ends. Returns what stops following. */
  cipm.follow = function (src, fallback, tell) {
    let stream = new EventSource(src), timer = 0, over = false;
    const stop = () => { over = true; clearTimeout(timer); if (stream) stream.close(); stream = null; };
    const take = (job) => {
      if (over || !job || !job.status) return;
      if (ENDED.includes(job.status)) stop();
      tell(job);
    };
    const poll = () => {
      if (stream) stream.close();
      stream = null;
      timer = setTimeout(async () => {
        const response = await fetch(fallback).catch(() => null);
        if (response && response.ok) { const body = await response.json(); take(body.job || body); }
        if (!over) poll();
      }, 2000);
    };
    const heard = (event) => { try { take(JSON.parse(event.data)); } catch (error) { if (!(error instanceof SyntaxError)) throw error; } };
    for (const name of ["message", "job"]) stream.addEventListener(name, heard);
    stream.onerror = () => { if (fallback && stream && stream.readyState === EventSource.CLOSED) poll(); };
    return stop;
  };

  class JobStream {
    constructor(node, props) { this.node = node; this.props = props; node.hidden = true; this.open(); }
    update(props) { const before = this.props; this.props = props; if (props.src !== before.src) { this.destroy(); this.open(); } }
    destroy() { if (this.stop) this.stop(); this.stop = null; }
    open() { if (this.props.src) this.stop = cipm.follow(this.props.src, this.props.fallback, (job) => this.props.setProps({ job })); }
  }
  cipm.component("JobStream", JobStream);

  /* Clocks: <span data-since="ISO time"> shows the time since; a finished one carries data-until. */
  setInterval(() => {
    for (const node of document.querySelectorAll("[data-since]")) {
      const since = Date.parse(node.dataset.since), until = node.dataset.until ? Date.parse(node.dataset.until) : Date.now();
      if (since) node.textContent = cipm.duration((until - since) / 1000);
    }
    for (const node of document.querySelectorAll("[data-eta]")) {
      const left = (Date.parse(node.dataset.eta) - Date.now()) / 1000;
      node.textContent = left > 1 ? `about ${cipm.duration(left)} left` : "nearly done";
    }
  }, 1000);
})();
