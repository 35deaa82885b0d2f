// Numbers for people.

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  let rest = value;
  for (const unit of ["B", "KiB", "MiB", "GiB", "TiB"]) {
    if (rest < 1024 || unit === "TiB") {
      return `${unit === "B" || rest >= 100 ? Math.round(rest) : rest.toFixed(1)} ${unit}`;
    }
    rest /= 1024;
  }
  return "";
}

export function ms(value) {
  if (value === null || value === undefined) return "–";
  if (value < 10) return `${value.toFixed(1)} ms`;
  if (value < 1000) return `${Math.round(value)} ms`;
  if (value < 60000) return `${(value / 1000).toFixed(value < 10000 ? 2 : 1)} s`;
  return duration(value / 1000);
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export function count(value) {
  return value === null || value === undefined ? "–" : WHOLE.format(value);
}

export function compact(value) {
  return value === null || value === undefined ? "–" : value < 10000 ? WHOLE.format(value) : SHORT.format(value);
}

export function percent(share) {
  return share === null || !Number.isFinite(share) ? "–" : `${Math.round(100 * share)} %`;
}

const CLOCK = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

export function clock(unix) {
  return CLOCK.format(1000 * unix);
}

const SOURCES = { live: "the context", ram: "RAM", ram_file: "RAM files", disk: "disk" };

// Where a prompt was read from; empty: nowhere.
export function source(name) {
  return name in SOURCES ? ` from ${SOURCES[name]}` : "";
}

export function tokens(n) {
  return `${count(n)} ${n === 1 ? "token" : "tokens"}`;
}
