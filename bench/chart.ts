/** Bars as SVG, readable on light and on dark ground. Pure. */
export interface Bar {
  readonly name: string;
  readonly value: number;
  readonly low: number;
  readonly high: number;
  readonly strong: boolean;
}
export interface Group {
  readonly title: string;
  readonly bars: readonly Bar[];
}

const [nameWidth, barWidth, valueWidth, barHeight, gap] = [190, 420, 90, 18, 6];

/** One scale for each group; a thin line shows the least and the most of the rounds. */
export function barChart(title: string, groups: readonly Group[], format: (value: number) => string): string {
  const width = nameWidth + barWidth + valueWidth;
  let y = 34;
  const parts: string[] = [];
  for (const { title: groupTitle, bars } of groups) {
    parts.push(text(0, y + 13, groupTitle, 'group'));
    y += 24;
    const scale = barWidth / Math.max(...bars.map(({ high }) => high));
    for (const { name, value, low, high, strong } of bars) {
      const middle = y + barHeight / 2;
      parts.push(
        text(nameWidth - 8, y + 13, name, strong ? 'name strong' : 'name'),
        `<rect x="${nameWidth}" y="${y}" width="${round(value * scale)}" height="${barHeight}" rx="2" class="${strong ? 'ours' : 'theirs'}"/>`,
        `<path d="M${round(nameWidth + low * scale)} ${middle}H${round(nameWidth + high * scale)}" class="spread"/>`,
        text(round(nameWidth + high * scale) + 6, y + 13, format(value), 'value'),
      );
      y += barHeight + gap;
    }
    y += 12;
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${y}" width="${width}" height="${y}" role="img" aria-label="${escaped(title)}">
<style>
text{font:13px system-ui,sans-serif;fill:#24292f}.title{font-weight:600;font-size:15px}.group{font-weight:600}.name{text-anchor:end}.strong{font-weight:600}
.ours{fill:#1f883d}.theirs{fill:#8c959f}.spread{stroke:#24292f;stroke-width:1.5;opacity:.6}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.ours{fill:#3fb950}.theirs{fill:#6e7681}.spread{stroke:#e6edf3}}
</style>
${text(0, 16, title, 'title')}
${parts.join('\n')}
</svg>
`;
}

const round = (value: number) => Math.round(value * 10) / 10;
const escaped = (value: string) => value.replace(/[&<>"]/g, (char) => `&#${char.charCodeAt(0)};`);
const text = (x: number, y: number, value: string, style: string) =>
  `<text x="${x}" y="${y}" class="${style}">${escaped(value)}</text>`;
