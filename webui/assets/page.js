// What the whole page does in the browser: the light switch and the clipboard. A tab's own parts have their own files.
() => {
  const desk = (window.desk = {
    // Writes text to the clipboard. On plain http away from this machine, and where a browser refuses the new way, it
    // goes the old one.
    async copy(text) {
      if (!text) return;
      if (navigator.clipboard && window.isSecureContext) {
        const done = await navigator.clipboard.writeText(text).then(() => true, () => false);
        if (done) return;
      }
      const field = document.createElement("textarea");
      field.value = text;
      field.style.position = "fixed";
      field.style.opacity = "0";
      document.body.append(field);
      field.select();
      document.execCommand("copy");
      field.remove();
    },

    theme(name) {
      document.body.classList.toggle("dark", name === "dark");
      localStorage.setItem("desk-theme", name);
      const address = new URL(location.href);
      address.searchParams.set("__theme", name);
      history.replaceState(history.state, "", address);
    },
  });

  document.addEventListener("click", (event) => {
    if (event.target.closest('[data-act="theme"]')) {
      desk.theme(document.body.classList.contains("dark") ? "light" : "dark");
    }
  });
}
