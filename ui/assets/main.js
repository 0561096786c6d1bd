// Everything the page needs; each import defines its custom element.

import "./header.js";
import "./grid.js";
import "./search.js";
import "./labeller.js";
import "./classify.js";
import "./runs.js";
