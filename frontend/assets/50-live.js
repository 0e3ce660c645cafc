/* A job followed live: server-sent events while they work, the analysis itself every two seconds where they do not. */
(function () {
  "use strict";
  const cipm = window.cipm, ENDED = ["done", "failed", "cancelled"];

  class JobStream {
    constructor(node, props) { this.node = node; this.props = props; node.hidden = true; this.open(); }
    update(props) { if (props.src !== this.props.src) { this.close(); this.props = props; this.open(); } else this.props = props; }
    destroy() { this.close(); }
    open() {
      if (!this.props.src) return;
      this.stream = new EventSource(this.props.src);
      const take = (event) => { try { this.tell(JSON.parse(event.data)); } catch (error) { if (!(error instanceof SyntaxError)) throw error; } };
      for (const name of ["message", "job"]) this.stream.addEventListener(name, take);
      this.stream.onerror = () => { if (this.stream && this.stream.readyState === EventSource.CLOSED) this.poll(); };
    }
    close() { if (this.stream) this.stream.close(); this.stream = null; clearTimeout(this.timer); }
    poll() {
      this.close();
      this.timer = setTimeout(async () => {
        const response = await fetch(this.props.fallback).catch(() => null);
        if (response && response.ok) { const body = await response.json(); this.tell(body.job || body); }
        if (!this.over) this.poll();
      }, 2000);
    }
    tell(job) {
      if (!job || !job.status) return;
      if (ENDED.includes(job.status)) { this.over = true; this.close(); }
      this.props.setProps({ job });
    }
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
