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

  // A LoRA dropped on the Train form: it goes into the library, and the form takes its settings.
  const is_lora = (event) => [...(event.dataTransfer?.types || [])].includes("Files") && event.target.closest?.("#train-form");
  document.addEventListener("dragover", (event) => { if (is_lora(event)) event.preventDefault(); });
  document.addEventListener("drop", async (event) => {
    const file = is_lora(event) && [...event.dataTransfer.files].find((one) => one.name.endsWith(".safetensors"));
    if (!file) return;
    event.preventDefault();
    const place = document.querySelector("#train-note .form-note span") || document.querySelector("#train-note");
    const answer = await fetch(`upload/lora?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file })
      .then((reply) => reply.json(), () => ({ problem: "The page does not answer: start it again." }));
    if (answer.problem) return void (place.textContent = answer.problem);
    const field = document.querySelector("#train-like textarea, #train-like input");
    field.value = answer.name;
    field.dispatchEvent(new Event("input", { bubbles: true }));
  });

  // Pictures to train on, chosen from a folder with other files in it: the server takes none of a bunch in which one is
  // of another kind, so those stay here, and are named.
  document.addEventListener("change", (event) => {
    const button = document.querySelector("#train-upload");
    const input = event.target;
    if (!button || input.type !== "file" || !button.parentElement.contains(input)) return;
    const taken = /\.(png|jpe?g|webp|bmp|gif|tiff?|txt)$/i;
    const others = [...input.files].filter((file) => !taken.test(file.name));
    let told = document.querySelector("#train-left-out");
    if (!told) {
      told = Object.assign(document.createElement("p"), { id: "train-left-out", className: "told" });
      told.setAttribute("role", "status");
      button.parentElement.after(told);
    }
    told.textContent = others.length ? `Left out, for only pictures and .txt files are taken: ${others.map((file) => file.name).join(", ")}.` : "";
    if (!others.length) return;
    const kept = new DataTransfer();
    for (const file of input.files) if (!others.includes(file)) kept.items.add(file);
    input.files = kept.files;
  }, true);

  document.addEventListener("click", (event) => {
    if (event.target.closest('[data-act="theme"]')) {
      desk.theme(document.body.classList.contains("dark") ? "light" : "dark");
    }
  });
}
