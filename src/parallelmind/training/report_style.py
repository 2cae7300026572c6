"""The style sheet of the report: light and dark, wide and narrow."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--paper:#f6f7f9;--card:#fff;--ink:#17202e;--muted:#5d6b80;--line:#e3e7ee;
--train:#8a9ab3;--held:#2f6fde;--plain:#1f8f66;--hidden:#eef1f6}
@media(prefers-color-scheme:dark){:root{--paper:#10141b;--card:#181e28;--ink:#e6ebf2;--muted:#95a3b8;--line:#2a3342;
--train:#7687a1;--held:#6ea0ff;--plain:#4fc497;--hidden:#222a37}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Noto Sans","PingFang SC","Microsoft YaHei","Noto Sans CJK SC",sans-serif}
main{max-width:1080px;margin:0 auto;padding:36px 24px 64px}
h1{font-size:27px;line-height:1.2;margin:2px 0 0;overflow-wrap:anywhere}
h2{font-size:18px;margin:0 0 14px}
h3{font-size:14px;margin:0 0 8px}
h3 small{font-weight:400;font-size:13px;color:var(--muted);margin-left:4px}
.kicker{margin:0;color:var(--muted);font-size:13px;letter-spacing:.02em}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:22px;margin-top:20px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:12px;margin:20px 0 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:12px 16px}
.tile dt,.tile small{color:var(--muted);font-size:13px}
.tile dd{margin:0;font-size:24px;font-weight:650;line-height:1.25;font-variant-numeric:tabular-nums}
.tile small{display:block;min-height:1.5em}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:0 20px;align-items:start}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:24px 28px}
figure{margin:0;min-width:0}
figcaption{display:flex;flex-wrap:wrap;gap:2px 16px;align-items:baseline;font-size:14px;margin-bottom:4px}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;color:var(--muted);font-size:13px}
.key::before{content:"";display:inline-block;width:16px;height:0;border-top:3px solid var(--k);border-radius:2px;
vertical-align:middle;margin-right:6px}
.train{--k:var(--train)}.held{--k:var(--held)}.plain{--k:var(--plain)}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{fill:var(--muted);font-size:12.5px;font-variant-numeric:tabular-nums}
svg .rule{stroke:var(--line);stroke-width:1}
svg .bar{fill:var(--held)}
svg polyline{fill:none;stroke:var(--k);stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}
svg .dot{fill:var(--k);stroke:var(--card);stroke-width:2}
svg .hover{fill:var(--k);opacity:0}svg .hover:hover{opacity:1}
.note{color:var(--muted);font-size:13.5px;margin:0 0 14px}
.none,.scroll + .note{margin:12px 0 0}.warning{color:#c2412f;margin:12px 0 0}
.row{display:grid;grid-template-columns:minmax(0,1fr) minmax(260px,360px);gap:32px;align-items:start}
.token{display:inline-block;padding:1px 6px;margin:0 4px 5px 0;border-radius:5px;font-size:13px;line-height:1.45;
background:color-mix(in srgb,var(--c,var(--muted)) 15%,transparent);max-width:100%;overflow-wrap:anywhere}
.token.supervised{background:color-mix(in srgb,var(--c,var(--muted)) 28%,transparent);
box-shadow:inset 0 0 0 1.3px var(--c,var(--muted))}
.more{color:var(--muted);font-size:13px;font-style:italic}
.branches{margin:14px 0 12px}
.scroll{overflow-x:auto}
.branches table{border-collapse:separate;border-spacing:6px 0;margin-left:-6px;table-layout:fixed;
width:min(100%,calc(var(--n)*150px + 46px));min-width:calc(var(--n)*84px + 46px)}
.branches thead th:first-child{width:34px}
.branches thead th+th{background:var(--c);color:#fff;border-radius:7px;padding:5px 8px}
.branches thead b{display:block;font-size:13px}
.branches thead small{display:block;font-weight:400;font-size:12px}
.branches tbody th,.branches thead th:first-child{color:var(--muted);font-weight:400;font-size:12px;text-align:right;
font-variant-numeric:tabular-nums}
.branches td{padding:3px 0 0;border-bottom:1px solid var(--line);text-align:center}
.branches td .token{display:block;margin:0 0 3px}
.answers{border-collapse:collapse;width:100%;min-width:560px;font-size:14px;table-layout:fixed}
.answers th{font-weight:400;color:var(--muted);text-align:left;vertical-align:top}
.answers th:first-child{width:64px}
.answers td{overflow-wrap:anywhere;white-space:pre-wrap}
.answers td,.answers th{padding:6px 14px 6px 0;border-top:1px solid var(--line)}
.answers thead th{border:0}.answers .of td{color:var(--muted);font-size:13px;border-top:2px solid var(--line)}
.right,.wrong{font-size:12px;border-radius:5px;padding:1px 6px;white-space:nowrap;color:#fff;background:#1f8f66}
.wrong{background:#b4472f}
.maskgrid{display:grid;grid-template-columns:16px minmax(0,1fr);gap:3px;aspect-ratio:auto}
.across,.down{display:flex;gap:0}.down{flex-direction:column}
.across i,.down i{background:var(--c);color:#fff;font-style:normal;font-size:11px;line-height:16px;min-width:0;
min-height:0;display:flex;align-items:center;justify-content:center;overflow:hidden}
.across i{height:16px}.down i{width:16px;writing-mode:vertical-rl;transform:rotate(180deg)}
.mask img{display:block;width:100%;aspect-ratio:1;image-rendering:pixelated;background:var(--hidden)}
.mask figcaption{color:var(--muted);font-size:12.5px;margin-top:6px}
table.values{border-collapse:collapse;width:100%;font-size:14px}
.values th{font-weight:400;color:var(--muted);text-align:left;padding:5px 20px 5px 0;width:44%;
vertical-align:top;overflow-wrap:anywhere}
.values td{overflow-wrap:anywhere;font-variant-numeric:tabular-nums;padding:5px 0}
.values tr+tr>*{border-top:1px solid var(--line)}
details{margin-top:14px;font-size:14px}summary{cursor:pointer;color:var(--muted)}
@media(max-width:760px){main{padding:22px 14px 40px}section{padding:16px}.row{grid-template-columns:minmax(0,1fr)}
.values th{padding-right:12px}
.answers{min-width:0;font-size:13px}.answers th:first-child{width:22px}.answers thead th:first-child{font-size:0}
.answers td,.answers th{padding-right:8px}}
@media print{:root{color-scheme:light;--paper:#fff;--card:#fff;--ink:#000;--muted:#4a5568;--line:#d5dbe5;
--train:#6b7a93;--held:#1f5fce;--plain:#176f4f;--hidden:#eef1f6}
@page{margin:14mm 12mm}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
body{font-size:12px}main{max-width:none;padding:0}
section{border:0;border-top:1px solid var(--line);border-radius:0;padding:12px 0;margin-top:12px}
.tiles{grid-template-columns:repeat(auto-fit,minmax(96px,1fr));gap:8px}.tile{padding:6px 10px}.tile dd{font-size:17px}
.charts{grid-template-columns:1fr 1fr;gap:14px 18px}
.pair{display:block;columns:2;column-gap:24px}
.row{grid-template-columns:minmax(0,1fr) 240px;gap:20px}
.scroll{overflow:visible}.branches table,.answers{min-width:0;width:100%}
.token,.branches thead b,.branches thead small{font-size:9.5px;white-space:normal}
figure,.tile,tr,.pair section,.branches{break-inside:avoid}h2,h3{break-after:avoid}
details::details-content{content-visibility:visible;block-size:auto}summary{list-style:none}}
"""
