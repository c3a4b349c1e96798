// The language switch stays at the same heading: it takes the #anchor along.
document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a.language");
  if (link) link.hash = location.hash;
});
