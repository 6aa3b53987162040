/* Keeps the figures of a page live, and shows times in the viewer's zone. Without it the pages work too. */
(function () {
    "use strict";

    var page = document.getElementById("graft-page");
    if (!page) {
        return;
    }
    var liveSwitch = document.getElementById("graft-live-switch");
    var every = parseFloat(page.dataset.graftEvery) * 1000;
    var isLive = every > 0 && !new URLSearchParams(location.search).has("still");
    var isAsking = false;
    var isPressing = false; // What is pressed must not be replaced before it is let go.

    function two(number) {
        return (number < 10 ? "0" : "") + number;
    }

    function inViewersZone(moment) {
        var ahead = -moment.getTimezoneOffset(), zone = Math.abs(ahead);
        return moment.getFullYear() + "-" + two(moment.getMonth() + 1) + "-" + two(moment.getDate()) + " " +
            two(moment.getHours()) + ":" + two(moment.getMinutes()) + ":" + two(moment.getSeconds()) + " " +
            (ahead < 0 ? "-" : "+") + two(Math.floor(zone / 60)) + ":" + two(zone % 60);
    }

    function showTimes(root) {
        root.querySelectorAll("time[datetime]").forEach(function (element) {
            var moment = new Date(element.dateTime);
            if (isNaN(moment)) {
                return;
            }
            var text = inViewersZone(moment);
            element.title = text;
            if (element.classList.contains("graft-moment")) {
                element.textContent = window.innerWidth < 600 ? text.slice(5, 19) : text;
            }
        });
    }

    /* On a phone a row stands as a block, and each figure has the name of its column beside it (graft.css). */
    function labelCells(root) {
        root.querySelectorAll("table.graft-table").forEach(function (table) {
            var names = Array.from(table.querySelectorAll("thead th"), function (head) {
                return head.textContent.trim();
            });
            table.querySelectorAll("tbody tr").forEach(function (row) {
                var at = 0;
                Array.from(row.cells).forEach(function (cell) {
                    cell.dataset.label = names[at] || "";
                    at += cell.colSpan;
                });
            });
            table.classList.add("graft-stacks");
        });
    }

    function prepare(root) {
        showTimes(root);
        labelCells(root);
    }

    function isBusy(live) {
        var selected = window.getSelection();
        return document.hidden || isPressing || live.contains(document.activeElement) || live.querySelector("input:checked") ||
            (selected && !selected.isCollapsed && live.contains(selected.anchorNode));
    }

    function update() {
        var live = document.getElementById("graft-live");
        if (!isLive || isAsking || isBusy(live)) {
            return;
        }
        isAsking = true;
        fetch(location.href, {credentials: "same-origin"}).then(function (answer) {
            return answer.text();
        }).then(function (text) {
            var next = new DOMParser().parseFromString(text, "text/html").getElementById("graft-live");
            if (next && !isBusy(live)) {
                live.querySelectorAll("details[open][id]").forEach(function (open) {
                    var again = next.querySelector("#" + CSS.escape(open.id));
                    if (again) {
                        again.open = true;
                    }
                });
                prepare(next);
                live.replaceWith(document.importNode(next, true));
            }
            page.classList.remove("graft-away");
        }).catch(function () {
            page.classList.add("graft-away");
        }).finally(function () {
            isAsking = false;
        });
    }

    function showSwitch() {
        liveSwitch.setAttribute("aria-pressed", isLive ? "true" : "false");
        liveSwitch.lastElementChild.textContent = isLive ? "Live" : "Stopped";
    }

    document.addEventListener("pointerdown", function () {
        isPressing = true;
    });
    ["pointerup", "pointercancel"].forEach(function (name) {
        document.addEventListener(name, function () {
            window.setTimeout(function () {
                isPressing = false;
            }, 300);
        });
    });
    document.addEventListener("change", function (event) {
        if (event.target.id === "graft-choose-all") {
            document.querySelectorAll("#graft-live input[name=ids]").forEach(function (box) {
                box.checked = event.target.checked;
            });
        }
    });
    window.addEventListener("resize", function () {
        showTimes(document);
    });
    prepare(document);
    if (liveSwitch && every > 0) {
        liveSwitch.hidden = false;
        liveSwitch.addEventListener("click", function () {
            isLive = !isLive;
            showSwitch();
        });
        showSwitch();
        window.setInterval(update, every);
    }
}());
