/** Which questions this service answers for an atlas: only these are shown. */

export function offersOf(info) {
  const questions = new Set(info.questions ?? ["where", "expression", "differential-expression", "markers"]);
  return {
    has: (question) => questions.has(question),
    markers: questions.has("markers"),
    neighbors: questions.has("neighbors"),
    places: questions.has("neighbors-of-new-cells"),
    labels: questions.has("predict") && info.labels.length > 0 && info.model === "SCANVI",
  };
}
